"""The layout that keeps the code readable in one order: who may import whom, and what must not run
at import time."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# A package imports only packages of a lower floor; two on the same floor never import one another.
FLOORS = {
    "common": 1,
    "model": 2,
    "lora": 2,
    "data": 2,
    "agent": 3,
    "training": 3,
    "embedded": 3,
    "serve": 4,
}
PROGRAMS = (
    "train",
    "infer",
    "benchmarks",
    "tests",
)  # the top floor, which nothing below may import
PACKAGES = tuple(FLOORS)
# The reading order. A file that is listed imports only listed files above it; for the others it is
# enough that there is no cycle. A subpackage stands as one entry.
ORDER = {
    "model": """gemma3 gguf config kernels fused recompute attention attention_tiles attention_flex
                layers transformer sweep loss loader embedding step generate""".split(),
    "data": """conversation lenient_json tool_schema tool_calls pieces
               functiongemma wire template_functiongemma template tokenizer_file
               tokenizer_gguf tokenizer reply_reader reply chat masks api_calls roles forms schema
               call_check parquet_file reports files dataset augment packing show""".split(),
    "lora": """config reference steps kernels implementations wrapped layer ops embedding inject
               adapter rows many""".split(),
}
HARDWARE = (
    "is_available",
    "device_count",
    "is_bf16_supported",
    "get_device",
    "is_mkldnn",
    "cpu_count",
    "mem_get_info",
)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = [*FILES, *(ROOT / name for name in ("train.py", "infer.py") if (ROOT / name).exists())]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever the import stands; `from a import b` counts as a
    and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def run_at_import(node: ast.AST) -> Iterator[Any]:
    """The nodes that run when the module is imported: all but function bodies."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [d for d in (*child.args.defaults, *child.args.kw_defaults) if d is not None]
            for part in (*defaults, *getattr(child, "decorator_list", ())):
                yield part
                yield from run_at_import(part)
        else:
            yield from run_at_import(child)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    used = imports(path)
    package, *rest = module_name(path).split(".")
    if package in FLOORS:
        forbidden = {
            other
            for other, floor in FLOORS.items()
            if other != package and floor >= FLOORS[package]
        }
        foreign = {name for name in used if name.split(".")[0] in forbidden | set(PROGRAMS)}
        assert not foreign, f"{path} imports {foreign}"
    order = ORDER.get(package, [])
    if rest and rest[0] in order:
        own = {name.split(".")[1] for name in used if name.startswith(f"{package}.")} & set(order)
        later = {name for name in own - {rest[0]} if order.index(name) > order.index(rest[0])}
        assert not later, f"{path} imports what stands below it: {later}"
    if "kernels" not in path.parts:
        assert not {name for name in used if name.split(".")[0] == "triton"}, (
            f"{path} imports triton"
        )


def test_there_is_no_import_cycle() -> None:
    names = {module_name(path) for path in FILES}
    TopologicalSorter(
        {module_name(path): imports(path) & names - {module_name(path)} for path in FILES}
    ).prepare()


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=module_name)
def test_init_files_hold_only_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) and len(tree.body) == 1


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_hardware_is_asked_at_import(path: Path) -> None:
    calls = [
        node
        for node in run_at_import(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    asked = [
        ast.unparse(call)
        for call in calls
        if any(word in ast.unparse(call.func) for word in HARDWARE)
    ]
    assert not asked, f"{path}: {asked}"
