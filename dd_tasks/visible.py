"""Text from data as a reader should meet it: nothing in it moves a cursor, turns the direction or hides."""

import re

# Control characters but for white space; marks and overrides of direction; what separates lines and paragraphs.
UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
LONGEST = 2000  # characters of a line that is told


def visible(text: str) -> str:
    """The text with what cannot be seen written out, as in `\\u202e`."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same on one line, with single spaces."""
    return visible(" ".join(text.split()))


def legible(text: str) -> str:
    """A line for a terminal: without what it cannot show, and cut where it is long."""
    whole = " ".join(text[: 2 * LONGEST].split())
    short = f"{whole[:LONGEST]} ..." if len(whole) > LONGEST or len(text) > 2 * LONGEST else whole
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
