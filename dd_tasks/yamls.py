"""YAML that others wrote, read within bounds."""

import re
from typing import Any

import yaml

DEEPEST = 100  # brackets within brackets: the reader takes seconds for a few hundred


def read(text: str) -> Any:
    """The data of a YAML text. ValueError, of one line, for anything else."""
    depth = 0
    for bracket in re.findall(r"[\[{}\]]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets within brackets")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split("\n")[:1])) from error
    except Exception as error:  # of a date that is none, a number of 5,000 digits, lists within lists within lists
        raise ValueError(f"a value in it cannot be read ({type(error).__name__})") from error
