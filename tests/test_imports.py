"""Imports point one way, as the house of the design says, and `--help` answers without the heavy libraries."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "vec_pipeline"
MODULES = sorted(path.relative_to(PROJECT) for path in PACKAGE.rglob("*.py"))

MAY_IMPORT = {  # a package stands for each of its modules; what is missing here may import anything but the entries
    "record": set(),
    "device": {"record"},
    "drivers": {"device"},
    "files": {"record"},
    "prompts": set(),
    "terminal": set(),
    "key_set": set(),
    "downloads": {"downloads", "pictures", "record"},
    "lists": {"downloads", "lists", "object_stores", "record"},
    "object_stores": {"record"},
    "picture_names": {"pictures"},
    "uploads": {"object_stores", "record"},
    "weights": {"record"},
    "remote": {"engines", "weights"},
    "pipeline": {"record"},
    "executor": {"batches", "contract", "crash_journal", "memory", "result_cache", "record"},
    "children": {"child", "crash_journal", "database", "downloads", "record", "result_cache"},
    "ray_actors": {
        *("child", "children", "crash_journal", "database", "device", "memory", "record", "result_cache", "terminal"),
    },
    "child": {"batches", "crash_journal", "database", "device", "executor", "memory", "record", "result_cache"},
    "batches": {"contract", "crash_journal", "memory", "record"},
    "contract": {"record"},
    "memory": {"record", "device"},
    "result_cache": {"database", "record"},
    "crash_journal": {"database", "record"},
    "database": {"record"},
    "chunk_size": {"record", "device"},
    "progress": {"record", "device", "terminal"},
    "config": {"contract", "record"},
    "settings": {"record", "weights"},
    "calibration": {"record"},
    "stages": {
        *("calibration", "device", "engines", "files", "pictures", "prompts", "record", "remote", "stages", "weights"),
    },
    "pictures": {"pictures"},
    "engines": {"engines", "device", "record"},
    "sources": {
        *("downloads", "key_set", "lists", "object_stores", "picture_names", "pictures", "record", "sources"),
    },
    "sinks": {"key_set", "record", "sinks"},
    "annotations": {"corrections", "device", "query", "record", "settings", "sinks", "sources"},
    "corrections": {"record"},
    "query": {"record"},
    "similarity": {"record"},
    "pairs": {"prompts", "record", "settings"},
}
FOR_TYPES_ONLY = {  # within `if TYPE_CHECKING:`
    ("chunk_size", "children"),
    ("chunk_size", "executor"),
    ("progress", "children"),
    ("progress", "downloads"),
    ("progress", "executor"),
}
ENTRIES = {"run", "vec_pipeline.__main__"}
HEAVY = {
    *("torch", "numpy", "transformers", "pandas", "PIL", "llama_cpp", "gensim", "open_clip", "sentence_transformers"),
    *("pyarrow", "psycopg", "pgserver", "aiohttp", "fsspec", "datasets", "watchfiles"),
    *("rapidocr", "cv2", "onnxruntime", "fastapi", "uvicorn", "prometheus_client", "diffusers"),
    *("praw", "prawcore", "zstandard", "matplotlib", "ray", "lancedb"),
}


def imported(path: Path, *, for_types: bool = True) -> set[str]:
    """Full names of what a module imports, anywhere in it; a name out of a package counts as a module of it.

    for_types: what it imports within `if TYPE_CHECKING:` too.
    """
    found = set()
    waiting: list[ast.AST] = [ast.parse((PROJECT / path).read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        waiting += node.orelse if is_for_types and not for_types else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    return found


def part(module: str) -> str:
    """The part of the house a full module name belongs to: vec_pipeline.stages.describe is of `stages`."""
    return module.split(".")[1]


def parts_imported(path: Path, **options: bool) -> set[str]:
    return {part(name) for name in imported(path, **options) if name.startswith("vec_pipeline.")}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    own = part(".".join(path.with_suffix("").parts))
    if own in MAY_IMPORT:
        assert parts_imported(path, for_types=False) <= MAY_IMPORT[own]
        assert parts_imported(path) <= MAY_IMPORT[own] | {other for name, other in FOR_TYPES_ONLY if name == own}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_but_sources_knows_the_folder(path: Path) -> None:
    """Which source an argument or a key belongs to is decided in one place, and a new source is one file."""
    knows = {name for name in imported(path) if f"{name}.".startswith("vec_pipeline.sources.folder.")}
    watches_folders = path == Path("vec_pipeline/commands/run/watch.py")
    assert not knows or watches_folders or path.parent == Path("vec_pipeline/sources")


def test_one_module_knows_ray() -> None:
    """What runs in a cluster, and the executor that runs there, do not know it."""
    assert [path.stem for path in MODULES if any(name.split(".")[0] == "ray" for name in imported(path))] == [
        "ray_actors"
    ]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_imports_an_entry(path: Path) -> None:
    names = imported(path)
    assert not {name for name in names if name in ENTRIES or name.startswith(("run.", "vec_pipeline.__main__."))}


def test_the_table_names_what_there_is() -> None:
    missing = {name for name in MAY_IMPORT if not ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file())}
    assert not missing


def test_imports_are_found_where_they_are() -> None:
    """The reader of imports is no judge if it overlooks one inside a function, or under a condition."""
    assert "vec_pipeline.engines.llama_process.LlamaProcess" in imported(Path("vec_pipeline/stages/structure.py"))
    for name, other in FOR_TYPES_ONLY:
        path = Path(f"vec_pipeline/{name}.py")
        assert other in parts_imported(path) - parts_imported(path, for_types=False)


def loaded_by(program: str, *arguments: str) -> set[str]:
    """The modules that are loaded once a program has answered."""
    process = subprocess.run(
        [sys.executable, "-c", f"import atexit, json, sys\n"
         f"atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))\n{program}", *arguments],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "usage:" in process.stdout
    return set(json.loads(process.stderr.splitlines()[-1]))


@pytest.mark.parametrize("module", ["run", "vec_pipeline.__main__"])
def test_help_loads_nothing_heavy(module: str) -> None:
    loaded = loaded_by(f"from {module} import main\nmain()", "--help")
    assert module in loaded
    assert not loaded & HEAVY


def test_stages_import_their_libraries_in_load() -> None:
    """So nobody pays for what they do not use: making every stage loads no model library."""
    program = (
        "from vec_pipeline.config import load_config; from pathlib import Path\n"
        "load_config(Path('config.yaml')); print('usage:')"
    )
    assert not loaded_by(program) & (HEAVY - {"numpy", "PIL"})
