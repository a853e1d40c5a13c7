"""The package: the wheel runs in an environment of its own, and the files around it say what is true."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vec_pipeline
from tests.conftest import EXAMPLES, PROJECT, Run
from tests.test_imports import MAY_IMPORT, MODULES, imported
from vec_pipeline import load_annotations
from vec_pipeline.__main__ import LIBRARIES, UNUSABLE, config_path, main

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PYPROJECT["project"]["optional-dependencies"].items()
}


def test_requirements_are_those_of_the_package() -> None:
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == PYPROJECT["project"]["dependencies"]


# --- The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with what is installed and without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(PROJECT)], check=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel; its dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True)
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def run_program(folder: Path, *command: object, **environment: str) -> Run:
    """Run a program in a folder that knows nothing of the checkout."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env={**inherited, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_the_wheel_holds_the_package_its_configurations_and_its_models(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        demo = yaml.safe_load(archive.read("vec_pipeline/bundled/configs/demo.yaml"))
    package = {path for path in (PROJECT / "vec_pipeline").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    bundled = {name for name in names if name.startswith("vec_pipeline/bundled/")}
    assert {name for name in names if ".dist-info/" not in name} - bundled == {
        path.relative_to(PROJECT).as_posix() for path in package
    }
    assert "vec_pipeline/py.typed" in names
    assert f"vec_pipeline-{vec_pipeline.__version__}.dist-info/licenses/LICENSE" in names
    configs = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "configs").glob("*.yaml")} | {"config.yaml"}
    assert {name for name in bundled if name.endswith(".yaml")} == {f"vec_pipeline/bundled/{name}" for name in configs}
    models = [entry["model"] for entry in demo["stages"] if "model" in entry]
    assert len(models) >= 5
    assert all(any(name == model or name.startswith(f"{model}/") for name in bundled) for model in models)
    assert not {name for name in bundled if "/fonts/" in name or name.endswith((".py", ".pyc"))}


def test_the_program_of_the_wheel_says_its_version(programs: Path, tmp_path: Path) -> None:
    run = run_program(tmp_path, programs / "vec-pipeline", "--version")
    assert (run.returncode, run.stdout) == (0, f"vec-pipeline {vec_pipeline.__version__}\n")


def test_the_installed_wheel_runs_the_demo_anywhere(programs: Path, tmp_path: Path, example_rows: pd.DataFrame) -> None:
    run = run_program(tmp_path, programs / "vec-pipeline", "run", EXAMPLES, "--config", "demo", "--output", "a.csv")
    assert run.returncode == 0, run.stderr
    rows = load_annotations(tmp_path / "a.csv")
    rows.index = pd.Index([Path(path).name for path in rows["image_path"]])
    assert len(rows) == len(example_rows) == 25
    assert not rows["error"].any()
    for column in ("text", "categories", "keywords", "image_text", "flags"):
        pd.testing.assert_series_equal(rows[column], example_rows[column])
    where = run_program(tmp_path, programs / "python", "-c", "import vec_pipeline; print(vec_pipeline.__file__)").stdout
    assert where.startswith(str(programs.parent)), "the package must not be that of the checkout"
    found = run_program(tmp_path, programs / "vec-pipeline", "search", "a brown fish", "--csv", "a.csv", "--top", "1")
    assert "brown-fish.jpg" in found.stdout, found.stderr


def test_a_configuration_of_the_project_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path(Path("demo")) == PROJECT / "configs" / "demo.yaml"
    assert config_path(Path("configs/small.yaml")) == PROJECT / "configs" / "small.yaml"
    assert config_path(Path("config.yaml")) == PROJECT / "config.yaml"
    (tmp_path / "config.yaml").write_text("stages: []")
    assert config_path(Path("config.yaml")) == Path("config.yaml"), "the user's own comes first"
    for nothing in ("damo", "/dev/null/x", "a" * 300, str(tmp_path)):
        assert config_path(Path(nothing)) == Path(nothing)


# --- What is not installed


def test_a_python_without_the_libraries_is_told_what_to_do(tmp_path: Path) -> None:
    """`python3 run.py` with the system's Python: `-S` hides what is installed."""
    run = run_program(tmp_path, sys.executable, "-S", PROJECT / "run.py", EXAMPLES)
    assert run.returncode == UNUSABLE
    missing = f"PIL, accelerate, aiohttp and {len(LIBRARIES) - 3} more"
    assert run.stderr == (
        f"run.py: {sys.executable} has no {missing}: run `make venv` in the project's folder and use .venv/bin/python, "
        "or install with `pip install .`\n"
    )
    for program in ([PROJECT / "run.py"], ["-m", "vec_pipeline"]):
        run = run_program(tmp_path, sys.executable, "-S", *program, "--help", PYTHONPATH=str(PROJECT))
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["psycopg", "pgserver"])
def test_a_missing_extra_is_named(
    name: str, example_run: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delitem(sys.modules, "vec_pipeline.commands.export.pgvector", raising=False)
    monkeypatch.delattr("vec_pipeline.commands.export.pgvector", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "database"
    assert main(["export", "--csv", str(example_run[1]), "--to", "pgvector", "--out", str(out)]) == UNUSABLE
    (sentence,) = capsys.readouterr().err.splitlines()
    assert name in sentence
    assert "pip install 'vec-pipeline[pgvector]'" in sentence
    assert not out.exists()


# --- The dependencies


def test_what_is_imported_is_declared() -> None:
    modules = packages_distributions()
    declared = {canonicalize_name(each.name) for each in DEPENDENCIES}
    declared |= {canonicalize_name(each.name) for extra in EXTRAS if extra != "dev" for each in EXTRAS[extra]}
    names = {name.partition(".")[0] for path in MODULES for name in imported(path)}
    foreign = names - set(sys.stdlib_module_names) - {"vec_pipeline"}
    assert {"torch", "psycopg"} <= foreign
    undeclared = {name for name in foreign if not declared & set(map(canonicalize_name, modules.get(name, ())))}
    assert not undeclared


def test_every_dependency_is_looked_for_before_a_command_runs() -> None:
    modules = packages_distributions()
    looked_for = {canonicalize_name(each) for name in LIBRARIES for each in modules[name]}
    assert looked_for == {canonicalize_name(each.name) for each in DEPENDENCIES if not each.marker}


def test_the_constraints_are_versions_that_the_package_allows() -> None:
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    for each in [*DEPENDENCIES, *(each for extra in EXTRAS.values() for each in extra)]:
        if each.name != "vec-pipeline":
            assert each.specifier.contains(versions[canonicalize_name(each.name)]), each


# --- The files around it


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in commands
    assert all(set(job) & {"runs-on"} and job["steps"] for job in workflow["jobs"].values())


def test_the_architecture_shows_the_imports_that_are_allowed() -> None:
    text = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\w, ]+) \|$", text, re.MULTILINE)
    assert {name: set(allowed.split(", ")) - {"nothing"} for name, allowed in rows} == MAY_IMPORT


def test_the_version_is_written_once() -> None:
    assert "version" in PYPROJECT["project"]["dynamic"]
    tree = ast.parse((PROJECT / "vec_pipeline" / "__init__.py").read_text())
    assert sum("__version__" in ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)) == 1
