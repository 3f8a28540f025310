"""YAML that others wrote, read within bounds."""

import re
from collections import Counter
from typing import Any

import yaml

DEEPEST = 100  # brackets within brackets: the reader takes seconds for a few hundred


class Strict(yaml.SafeLoader):
    """Of a name that is there twice nobody knows which one was meant."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, times in names.items() if times > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice")
        return super().construct_mapping(node, deep)


def read(text: str) -> Any:
    """The data of a YAML text. ValueError, of one line, for anything else."""
    depth = 0
    for bracket in re.findall(r"[\[{}\]]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets within brackets")
    try:
        return Strict(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split("\n")[:1])) from error
    except Exception as error:  # of a date that is none, a number of 5,000 digits, lists within lists within lists
        raise ValueError(f"a value in it cannot be read ({type(error).__name__})") from error
