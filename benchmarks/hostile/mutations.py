"""Real bytes and real documents, harmed: by a seed, or as hypothesis draws it."""

import json
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

SEEDS = st.integers(0, 2**32 - 1)
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NAMES = (
    "a", "../a", "../../../../tmp/evil", "/etc/passwd", "/a", "./a", "a/../b", "..", ".", "", "a/", "-rf", "~", "con",
    "a\\b", "C:\\a", "a\0b", "a\nb", "a\x1b[31mb", "é", "日本", "\u202eabc", "\ud800", "a" * 300, "__a__", "a.b.c",
    "$(id)", "{a,b}", "*", "<script>alert(1)</script>", "%2e%2e%2f", "😀", "a b", "'", '"', "\ufeffa", "None",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2**31, -(2**31) - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308,
    float("inf"),
    float("-inf"), float("nan"),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(), st.sampled_from(NAMES), st.text(),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
    max_size=4), max_leaves=8),
    st.integers(1, 3000).map(lambda n: [0] * n),
    st.integers(2, 200).map(lambda n: nested(n)),
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def harmed(data: bytes, seed: int, most: int = 6) -> bytes:
    """The bytes after one to `most` changes."""
    rng = Random(seed)
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        _harm(out, rng)
    return bytes(out)


def _harm(out: bytearray, rng: Random) -> None:
    if not out:
        out += rng.randbytes(rng.randint(0, 64))
        return
    at = rng.choice((rng.randrange(len(out)), rng.randrange(min(len(out), 512)), rng.randrange(-min(len(out), 512), 0)))
    at %= len(out)
    span = rng.choice((1, 2, 4, 8, 16, 512, len(out) // 2))
    match rng.randrange(8):
        case 0:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            out[at] = rng.choice(EDGES) & 0xFF
        case 2:
            width = rng.choice((2, 4, 8))
            out[at : at + width] = rng.choice(EDGES).to_bytes(8)[-width:][:: rng.choice((1, -1))]
        case 3:
            del out[at : at + span]
        case 4:
            out[at:at] = out[at : at + min(span, 1 << 16)]
        case 5:
            del out[at:]
        case 6:
            out[at : at + span] = bytes(min(span, len(out) - at))
        case _:
            out[at:at] = rng.randbytes(min(span, 512))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within nested data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@st.composite
def edited(draw: Any, document: Any, most: int = 4) -> Any:
    """The document with up to `most` of its parts replaced, removed, renamed, added or repeated."""
    value = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, most))):
        found = places(value)
        path = found[draw(st.integers(0, len(found) - 1))]
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = draw(VALUES)
            continue
        _edit(draw, value, path)
    return value


def _edit(draw: Any, value: Any, path: tuple[Any, ...]) -> None:
    *way, last = path
    for key in way:
        value = value[key]
    action = draw(st.sampled_from(("replace", "replace", "replace", "nudge", "remove", "rename", "add", "repeat")))
    if action == "nudge" and isinstance(value[last], int | float) and not isinstance(value[last], bool):
        value[last] += draw(st.sampled_from((1, -1, 2**31, 2**63, 1e-3)))
    elif action == "remove":
        del value[last]
    elif action == "rename" and isinstance(value, dict):
        value[draw(st.sampled_from(NAMES))] = value.pop(last)
    elif action == "add" and isinstance(value, dict):
        value[draw(st.sampled_from(NAMES))] = draw(VALUES)
    elif action == "repeat" and isinstance(value, list):
        value.extend([value[last]] * draw(st.sampled_from((1, 2, 1000))))
    else:
        value[last] = draw(VALUES)


def written(value: Any) -> bytes:
    """As JSON, also what JSON has no words for."""
    return json.dumps(value, ensure_ascii=True).encode()


@st.composite
def spoiled(draw: Any, text: SearchStrategy[bytes]) -> bytes:
    """The text; or, now and then, other bytes than text of its kind has."""
    data = draw(text)
    match draw(st.integers(0, 19)):
        case 0:
            return harmed(data, draw(SEEDS))
        case 1:
            return b"\xef\xbb\xbf" + data
        case 2:
            return data.decode("utf-8", "replace").encode("utf-16")
        case 3:
            return b"[" * draw(st.sampled_from((500, 5000, 100_000))) + data
        case 4:
            return data[: draw(st.integers(0, len(data)))]
        case 5:
            return data.replace(b'"', b'"\\ud800', 1)
        case 6:
            return b'{"a":' * draw(st.sampled_from((500, 50_000))) + data
        case 7:
            return data.replace(b"0", b"9" * 5000, 1)
        case _:
            return data


def documents(document: Any, most: int = 4) -> SearchStrategy[bytes]:
    """A JSON file that was this document."""
    return spoiled(edited(document, most).map(written))
