"""The arrows between our modules, read from their syntax trees; nothing is imported but the three packages."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dd_tasks
import flows
import schemas

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "dd_tasks", "schemas")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# A module of dd_tasks imports those of earlier rows alone: so no arrow points back, and none makes a circle.
RANKS = (
    ("redaction", "visible"),
    ("errors", "types", "ranges", "citation", "memory", "seconds", "whole", "native", "pngs", "yamls"),
    ("networks", "winograd", "instance_norm"),
    ("lean",),
    ("compiling",),
    (
        "augment",
        "statistics",
        "decoding",
        "feeds",
        "tars",
        "hub",
        "folder",
        "clusters",
        "columns",
        "throughput",
        "pictures",
        "scores",
        "axes",
        "claims",
        "numerics",
        "pieces",
    ),
    ("sources",),
    ("shards", "store", "voters", "nearness", "compact", "exact", "changelog", "anatomy", "extents", "probe"),
    ("codec", "garbage", "rates", "jpegs", "initialise", "terms", "schedule", "label", "committee", "packing"),
    ("card", "learners", "guides", "sound"),
    ("croissant", "report", "recipe", "students", "opinions"),
    ("artifact", "agreement", "presets", "distill", "comparison", "job", "pixels"),
    ("recovery",),
    ("validate", "verify", "plan"),
    ("publish", "footprint", "calibrate"),
    ("bill",),
)
RANK = {f"dd_tasks.{name}": rank for rank, names in enumerate(RANKS) for name in names}
ONLY_IN = {
    "prefect": {str(path) for path in FILES if path.parts[0] == "flows"},
    "typer": {
        "flows/cli.py",
        "flows/cli_committee.py",
        "flows/cli_plan.py",
        "flows/cli_serve.py",
        "flows/cli_store.py",
        "flows/options.py",
    },
    "webdataset": {"dd_tasks/shards.py", "dd_tasks/packing.py"},
    "huggingface_hub": {"dd_tasks/hub.py"},
    "datasets": {"dd_tasks/artifact.py", "dd_tasks/validate.py", "dd_tasks/packing.py"},
}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "torch.load", "torch.hub.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load",
    "np.load", "numpy.load", "pd.read_pickle",
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(module: ast.Module) -> Iterator[str]:
    """Everything imported anywhere in a file, as dotted names: `from a import b` is `a.b`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def called(module: ast.Module) -> Iterator[str]:
    yield from (ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call))


def top(name: str) -> str:
    return name.split(".")[0]


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports, as `package.module`."""
    return {".".join(name.split(".")[:2]) for name in imported(tree(path)) if top(name) in PACKAGES}


def test_the_reader_sees_every_way_to_import():
    text = "import a.b as c\nfrom d import e\ndef f():\n    from g.h import i\nif x:\n    import j\nfrom . import k"
    assert set(imported(ast.parse(text))) == {"a.b", "d.e", "g.h.i", "j", "..k"}
    assert set(called(ast.parse("torch.load(x)\nnet.eval()\neval(y)"))) == {"torch.load", "net.eval", "eval"}


def test_the_packages_are_those_of_this_tree():
    for package in (flows, dd_tasks, schemas):
        assert Path(package.__file__ or "").resolve().parent == ROOT / package.__name__


@pytest.mark.parametrize("path", FILES, ids=str)
def test_packages_import_downwards(path):
    allowed = PACKAGES[PACKAGES.index(path.parts[0]) :]
    assert {top(name) for name in ours(path)} <= set(allowed)
    assert not any(name.startswith(".") for name in imported(tree(path))), "relative imports hide their arrow"


def test_every_module_of_the_work_has_a_rank():
    modules = {f"dd_tasks.{path.stem}" for path in FILES if path.parent == Path("dd_tasks") and path.stem != "__init__"}
    assert modules == RANK.keys()


@pytest.mark.parametrize("module", RANK)
def test_the_work_imports_lower_ranks_alone(module):
    path = Path(*module.split(".")).with_suffix(".py")
    inner = {name for name in ours(path) if name.startswith("dd_tasks")}
    assert not {name for name in inner if RANK[name] >= RANK[module]}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_its_place_alone(library):
    found = {str(path) for path in FILES if library in map(top, imported(tree(path)))}
    assert found and found <= ONLY_IN[library]


def test_types_import_torch_alone():
    found = {top(name) for name in imported(tree(Path("dd_tasks/types.py")))}
    assert found == {"collections", "contextlib", "dataclasses", "typing", "torch"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled_or_evaluated(path):
    names = set(imported(tree(path)))
    assert not {top(name) for name in names} & UNSAFE_MODULES
    assert not (names | set(called(tree(path)))) & UNSAFE_CALLS
