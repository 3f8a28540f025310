"""What our code must not use, read from syntax trees: whatever runs code that data brings, or takes a path from it."""

import ast
from collections.abc import Iterator

MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "code",
}  # fmt: skip
NAMES = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "tempfile.mktemp",
    "shutil.unpack_archive", "torch.load", "torch.hub", "torch.jit.load", "torch.package", "torch.export.load",
    "torch.utils.model_zoo", "numpy.lib.format.read_array", "numpy.fromregex", "pandas.read_pickle", "yaml.full_load",
    "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.Loader", "yaml.FullLoader",
    "yaml.UnsafeLoader", "importlib.import_module", "runpy", "ctypes.PyDLL", "xml.etree.ElementTree.fromstring",
    "xml.etree.ElementTree.parse", "pyarrow.deserialize", "huggingface_hub.load_state_dict_from_file",
}  # fmt: skip
METHODS = {"extract", "extractall", "_extract_member", "read_pickle", "unsafe_load", "add_safe_globals"}
WEBDATASET = {"webdataset.writer.TarWriter", "webdataset.shardlists.expand_urls"}  # nothing that decodes by suffix


def findings(text: str) -> list[str]:
    """Every use in a module's text, as `LINE: WHAT`."""
    tree = ast.parse(text)
    known = dict(_imported(tree))
    found = [f"{line}: imports {name}" for line, name in _imports(tree) if _refused_import(name)]
    for node in ast.walk(tree):
        found += [f"{node.lineno}: {what}" for what in _uses(node, known)]  # type: ignore[attr-defined]
    return found


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _refused_import(name: str) -> bool:
    if name.split(".")[0] == "webdataset":
        return name not in WEBDATASET
    return name.split(".")[0] in MODULES or any(name == bad or name.startswith(f"{bad}.") for bad in NAMES)


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a local name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    """The whole name of what is named; empty for what is no name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, known)
        return f"{inner}.{node.attr}" if inner else f"?.{node.attr}"
    return ""


def _uses(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Name | ast.Attribute):
        if (name := dotted(node, known)) in NAMES:
            yield name
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f".{node.attr}"
    elif isinstance(node, ast.Call):
        yield from _calls(node, known)


def _calls(node: ast.Call, known: dict[str, str]) -> Iterator[str]:
    name, given = dotted(node.func, known), {keyword.arg: keyword.value for keyword in node.keywords}
    if name == "yaml.load" or name == "yaml.load_all":
        loader = given.get("Loader", node.args[1] if len(node.args) > 1 else None)
        if loader is None or dotted(loader, known) not in ("yaml.SafeLoader", "yaml.CSafeLoader"):
            yield f"{name} without SafeLoader"
    if name == "numpy.load" and not _is(given.get("allow_pickle"), False):
        yield "numpy.load without allow_pickle=False"
    for keyword, harmless in (("allow_pickle", False), ("shell", False), ("pretrained", False), ("weights_only", None)):
        if keyword in given and not _is(given[keyword], harmless):
            yield f"{keyword}={ast.unparse(given[keyword])}"
    library = {dotted(each, known).split(".")[0] for each in (node.func, *node.args[:1])}
    if "weights" in given and "torchvision" in library and not _is(given["weights"], None):
        yield f"weights={ast.unparse(given['weights'])}"
    if name.endswith(".persist_result") or ("persist_result" in given and not _is(given["persist_result"], False)):
        yield "results of Prefect's, which are pickles"
    if "result_serializer" in given and not _is(given["result_serializer"], "json"):
        yield f"result_serializer={ast.unparse(given['result_serializer'])}"


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value and type(node.value) is type(value)
