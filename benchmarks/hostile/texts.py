"""Small files that users write and machines harm: class names, index.json, SPEC.yaml."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.hostile.family import Family, asked, told
from benchmarks.hostile.mutations import NAMES, documents, edited, spoiled
from benchmarks.hostile.pictures import kinds

# ---- class names


@st.composite
def classes(draw: Any) -> tuple[str, list[str], bytes, list[bytes]]:
    """How they are handed over; the names; classes.txt; what the shards' members say."""
    name = st.one_of(st.sampled_from(NAMES), st.text(max_size=20), st.sampled_from(("cat", "dog")))
    names = draw(st.lists(name, max_size=5))
    ends = draw(st.sampled_from(("\n", "\r\n", "\r", "\x0b", "\u2028", "\n\n")))
    text = draw(spoiled(st.just(ends.join(names).encode("utf-8", "surrogatepass"))))
    labels = draw(
        st.lists(
            st.sampled_from((b"0", b"1", b"2", b"7", b"\xb2", b"00", b"1e1", b"\xef\xbb\xbf1")), min_size=1, max_size=4
        )
    )
    return draw(st.sampled_from(("file", "argument", "folders", "only"))), names, text, labels


def run_classes(case: tuple[str, list[str], bytes, list[bytes]], room: Path, _: Path) -> list[str]:
    from tarred import write_tar

    from dd_tasks import packing, shards

    way, names, text, labels = case
    if way == "folders":
        image = kinds()[4]
        return [
            asked(lambda: packing.pack([(f"a{i}", image, "png", i) for i in range(len(names))], names, room / "out"))
        ]
    members = [pair for i, label in enumerate(labels) for pair in ((f"s{i}.png", kinds()[4]), (f"s{i}.cls", label))]
    path = write_tar(room / "a.tar", members)
    if way == "file":
        (room / "classes.txt").write_bytes(text)
        return [
            told("shards", "check", path),
            asked(lambda: shards.open_source([str(path)], quarantine=shards.Quarantine(9))),
        ]
    given: dict[str, Any] = {"classes": names or None} if way == "argument" else {"only": names}
    return [asked(lambda: shards.open_source([str(path)], quarantine=shards.Quarantine(9), **given))]


# ---- index.json


@cache
def shard() -> bytes:
    import tempfile

    from tarred import write_tar

    labels = (b"0", b"1", b"1", b"0", b"2", b"2")
    members = [pair for i, label in enumerate(labels) for pair in ((f"s{i}.png", kinds()[4]), (f"s{i}.cls", label))]
    with tempfile.TemporaryDirectory() as folder:
        return write_tar(Path(folder) / "a.tar", members).read_bytes()


def index() -> dict[str, Any]:
    data = shard()
    entry = {
        "name": "a.tar",
        "samples": 6,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "classes": [0, 1, 2],
    }
    sums = [256, 9, 9, 9, 99, 99, 99]
    return {
        "format": "retort-shards-1", "classes": ["cat", "dog", "owl"], "shards": [entry], "samples_per_class": [2, 2,
        2],
        "height": 16, "width": 16, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "pixels_per_class": [sums] * 3,
    }  # fmt: skip


def run_index(case: tuple[bytes, str], room: Path, _: Path) -> list[str]:
    from dd_tasks import shards

    text, way = case
    (room / "index.json").write_bytes(text)
    (path := room / "a.tar").write_bytes(shard())
    if way == "check":
        return [told("shards", "check", path)]
    if way == "plan":
        return [told("plan", "sre2l", "--shards", path, "--ipc", "1")]
    if way == "dry":
        return [told("run", "sre2l", "--shards", path, "--ipc", "1", "--dry-run", "--out", room / "out")]

    def read() -> None:
        only = ["cat", "owl"] if way == "some" else []
        quarantine = shards.Quarantine(0)
        source = shards.open_source([str(path)], only=only, quarantine=quarantine)
        list(shards.feed(source, side=16, quarantine=quarantine).batches(3, seed=0))
        shards.sample_per_class(source, per_class=1, seed=0, quarantine=quarantine)

    return [asked(read)]


LIES: tuple[dict[str, Any], ...] = (
    {"samples_per_class": [6, 0, 0]}, {"samples_per_class": [1, 2, 3]}, {"mean": [float("nan")] * 3},
    {"mean": [1e308] * 3},
    {"std": [0, 0, 0]}, {"std": [-1, float("inf"), 0]}, {"height": 1, "width": 10**9}, {"height": None, "width": None},
    {"height": 10**30, "width": 10**30}, {"pixels_per_class": None}, {"pixels_per_class": [[0] * 7] * 3},
    {"pixels_per_class": [[-1] * 7] * 3}, {"pixels_per_class": [[1, 9, 9, 9, 0, 0, 0]] * 3}, {"classes": ["a\nb",
    "\x1b[2J", " "]},
    {"pixels_per_class": [[10**400] * 7] * 3}, {"classes": ["owl", "cat", "dog"]}, {"classes": ["1", "0", "2"]},
    {"pixels_per_class": [[1, 10**400, 1, 1, 1, 1, 1]] * 3},
)  # fmt: skip
ENTRIES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"classes": []},
    {"classes": [7, -1]},
    {"classes": None},
    {"bytes": 10**30},
    {"sha256": "0" * 64},
    {"name": "b.tar"},
    {"classes": [10**30]},
)


def lying(told: dict[str, Any], entry: dict[str, Any]) -> bytes:
    """An index that is well formed, and untrue."""
    made = index() | told
    made["shards"] = [made["shards"][0] | entry]
    return json.dumps(made).encode()


INDEXES = st.tuples(
    documents(index(), 2) | st.builds(lying, st.sampled_from(LIES), st.sampled_from(ENTRIES)),
    st.sampled_from(("check", "plan", "dry", "feed", "some")),
)

# ---- SPEC.yaml

SPEC = {
    "preset": "e2d", "shards": ["shards/*.tar"], "test": ["shards/*.tar"], "ipc": 2, "classes": [], "normalise": "data",
    "side": 16, "committee": "tiny", "students": ["convnet3_w32"], "seeds": 2, "student_epochs": 3, "student_batch": 10,
    "full_epochs": 1, "labels": "edc", "codec": "compact", "label_bytes_per_image": 100, "guides": None,
    "hard_rows": False, "plain_rows": True, "bytes_row": False, "seed": 0, "panel": 10, "held_out": 0.1, "flip": False,
    "tolerate": 0, "license": "mit", "source_dataset": "a/b", "name": "n",
    "set": {"schedule.phases.0.steps": "6", "labeller.epochs": "3", "student.rate": "0.1", "observers.epochs": "1"},
}  # fmt: skip
PATHS = (
    "schedule.phases.0.steps", "schedule.phases.1.steps", "schedule.phases.0", "schedule", "labeller.epochs",
    "labeller",
    "labeller.scale", "initialiser", "ballots.0.voters", "ballots.0.terms.0.weight", "ballots", "observers.epochs",
    "observers.batch", "student.rate", "student.batch", "student", "a.b", "", ".", "schedule.phases.-1.steps",
    "schedule.phases.00.steps", "schedule.__class__", "initialiser.__init__",
)  # fmt: skip
SETTINGS = (
    "1", "0", "-1", "1e400", "NaN", "Infinity", "-Infinity", "null", "true", "[]", "{}", '"a"', "[0.5,1.0]", "[1,2,3]",
    "9" * 5000,
    "[" * 5000, "Representatives", "Noise", "OneHot", "Lottery", "9223372036854775808", "0.1", "\ud800", "", "{", "int",
)  # fmt: skip
PRESETS = (
    "sre2l", "cda", "rded", "edc", "e2d", "cv_dd", "dream_plus", "clom", "retort", "E2D", "", "os:system", "a:b", ":",
    "a:",
    "clom(e2d)", "clom(", "clom(e2d", "clom(clom(e2d))", "clom(dream_plus, convnet3@epoch=1 of=8)", "builtins:eval",
    "clom(" * 500, "benchmarks.matching:random_sampling", "dd_tasks.presets:e2d", "json:loads", "x.yaml", "../x:y",
)  # fmt: skip
COMMITTEES = ("tiny", "small", "", "../x", "committee.json", "/dev/null", "a" * 5000, "timm/resnet18", "no.json")
NETWORKS = ("convnet3", "convnet3_w32", "convnet0", "convnet999999999", "resnet18", "timm/resnet18", "timm/../x", "",
"convnet3_w0", "torchvision/x")  # fmt: skip
YAML = (
    "&a [*a]", "{? {a: b} : c}", "!!python/object/apply:os.system [id]", "!!binary '*'", "2001-99-99", "0x_", "0b_",
    "!!int abc",
    "!!float abc", "!!timestamp x", "1:99:99:99", ".nan", "-.inf", "? [a]\n: b", "<<: [1, 2]", "<<: *x", "*x",
    "%YAML 9.9\n---\na",
    "'\\ud800'", "\"\\ud800\"", "\"\\x00\"", "--- a\n--- b", "~", "[" * 3000, "{a: " * 3000, "- " * 5000,
    "!!set {a, b}", "!!omap [a: 1]",
    "9" * 5000, "1: 2", "null: 1", "[]: 1", "\t", "a: b: c", "@", "`", "!", "!<tag:yaml.org,2002:int> 9", "0o9",
    "1_000", "2001-01-01T99:99:99Z",
)  # fmt: skip


def laughs(levels: int) -> str:
    """Few bytes of YAML that stand for 9 to the `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@st.composite
def specs(draw: Any) -> tuple[bytes, str]:
    """A SPEC.yaml, and the command that reads it."""
    import yaml

    value = dict(SPEC)
    kind = draw(st.sampled_from(("edited", "edited", "set", "names", "yaml", "laughs", "huge")))
    if kind == "edited":
        value = draw(edited(SPEC))
    elif kind == "set":
        value["set"] = draw(st.dictionaries(st.sampled_from(PATHS), st.sampled_from(SETTINGS), max_size=3))
    elif kind == "names":
        value |= {
            "preset": draw(st.sampled_from(PRESETS)), "labels": draw(st.sampled_from((None, *PRESETS))),
            "committee": draw(st.sampled_from(COMMITTEES)), "students": [draw(st.sampled_from(NETWORKS))],
            "guides": draw(st.sampled_from((None, "convnet3@epoch=1 of=8", "@", "a@epoch=x",
            "convnet3@epoch=1..9999999999999"))),
        }  # fmt: skip
    elif kind == "huge":
        field = draw(
            st.sampled_from(("ipc", "side", "seeds", "student_epochs", "student_batch", "panel", "seed", "full_epochs"))
        )
        value[field] = draw(st.sampled_from((2**31, 2**63, 10**30, 10**400, 0, -1, 7)))
    if kind == "laughs":
        text = (
            laughs(draw(st.integers(2, 12)))
            + f"\n{draw(st.sampled_from(('shards', 'preset', 'ipc', 'set', 'students')))}: *a1\n"
        )
        text = text.replace("*a1\n", f"*a{text.count('&') - 1}\n") + ("preset: e2d\n" if draw(st.booleans()) else "")
    elif isinstance(value, dict):
        text = "".join(f"{json.dumps(str(key))}: {_yaml(part)}\n" for key, part in value.items())
    else:
        text = yaml.safe_dump(value)
    if kind == "yaml":
        odd, field = draw(st.sampled_from(YAML)), draw(st.sampled_from(tuple(SPEC)))
        text = odd if draw(st.booleans()) else text.replace(f'"{field}":', f'"{field}": {odd} #', 1)
    data = draw(spoiled(st.just(text.encode("utf-8", "surrogatepass"))))
    return data, draw(st.sampled_from(("dry", "dry", "plan")))


def _yaml(value: Any) -> str:
    """As one line, which JSON is."""
    return json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")


def prepare_specs(folder: Path) -> None:
    (folder / "shards").mkdir()
    (folder / "shards" / "a.tar").write_bytes(shard())
    (folder / "shards" / "index.json").write_text(json.dumps(index()))


def run_spec(case: tuple[bytes, str], room: Path, prepared: Path) -> list[str]:
    import os

    text, way = case
    (spec := room / "spec.yaml").write_bytes(text)
    os.chdir(prepared)
    if way == "plan":
        return [told("plan", spec, "--dataset", "digits")]
    return [told("run", spec, "--dry-run", "--out", room / "out")]


# ---- files of retort's own that commands take


OWN = {
    "committee": {"observers": [{"architecture": "convnet3", "weights": "w.safetensors", "sha256": "0" * 64}]},
    "calibration": {
        "format": "retort-calibration-1", "machine": "m", "device": "cpu", "torch": "2", "threads": 1,
        "base_memory_bytes": 1, "rates": [],
    },
}  # fmt: skip
OTHERS = st.sampled_from(tuple(OWN)).flatmap(lambda name: st.tuples(st.just(name), documents(OWN[name])))


def run_other(case: tuple[str, bytes], room: Path, prepared: Path) -> list[str]:
    name, text = case
    (path := room / f"{name}.json").write_bytes(text)
    option = ["--calibration", path] if name == "calibration" else ["--committee", path]
    return [told("plan", "e2d", "--dataset", "digits", "--ipc", "2", *option)]


FAMILIES = (
    Family("class files", classes(), run_classes),
    Family("indexes", INDEXES, run_index),
    Family("run specs", specs(), run_spec, prepare_specs),
    Family("own files", OTHERS, run_other, cost=0.5),
)
