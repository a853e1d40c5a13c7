"""README.md and docs/ say what is there: commands run as they are printed, and tables and links agree with the code."""

import argparse
import ast
import csv
import doctest
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, Run
from vec_pipeline import commands, load_annotations
from vec_pipeline.__main__ import UNUSABLE, add_command
from vec_pipeline.commands.run import ALL_FINE, INTERRUPTED, SOME_ERRORS
from vec_pipeline.config import PLACEMENT, Config, check_wiring, load_config, option_names, stage_class, stage_names
from vec_pipeline.pictures import kinds
from vec_pipeline.record import COLUMNS, Stage
from vec_pipeline.sources.folder import LocalFile
from vec_pipeline.stages.open_image import OpenImage
from vec_pipeline.weights import HUB_GB

DOCS = PROJECT / "docs"
README = (PROJECT / "README.md").read_text(encoding="utf-8")
EXTENDING_PAGE = (DOCS / "extending.md").read_text(encoding="utf-8")
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "models/demo/README.md",
    *sorted(DOCS.rglob("*.md")),
]
OF_EXPERIMENTS = ("benchmarks.md", "lab-notes.md", "mutants.md", "reliability.md")  # which name options of benchmarks
COMMANDS = [name for _, name, _ in pkgutil.iter_modules(commands.__path__)]
# Those whose models are downloaded.
CONFIGS = ("config.yaml", "configs/eyes.yaml", "configs/qwen3.yaml", "configs/small.yaml", "configs/laptop.yaml")
PRODUCTION = (PROJECT / "config.yaml").read_text(encoding="utf-8")
DEMO = (PROJECT / "configs" / "demo.yaml").read_text(encoding="utf-8")


# --- What a page holds


class Block(NamedTuple):
    """A block of code. language: that of its fence; an indented one is `sh`."""

    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The commands, each without its comment; one that goes on after a backslash is one."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [command for line in joined.splitlines() if (command := re.sub(r"(^|\s+)#( .*)?$", "", line).strip())]


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|(?<=\n\n)((?: {4}[^\n]*\n|\n(?= {4}))+)", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)(`+)(?!`) ?((?:[^\n]|\n(?!\n))+?) ?(?<!`)\1(?!`)")


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        Block("sh", re.sub("^ {4}", "", indented, flags=re.M)) if indented else Block(*each)
        for *each, indented in found
    ]


def commands_of(page: Path) -> list[str]:
    return [command for block in blocks(page) if block.language == "sh" for command in block.lines]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> set[str]:
    """What stands between backticks outside the blocks."""
    return {" ".join(text.split()) for _, text in SPAN.findall(prose(page))}


def rows(page: Path, first_cell: str) -> list[str]:
    """The first cells of tables that match a pattern; its group."""
    return re.findall(rf"^\| {first_cell} \|", prose(page), re.MULTILINE)


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_command(command, parser)
    return parser


def options_of(command: str) -> set[str]:
    """Its options with their metavars, as a table of the docs has them."""
    actions = [each for each in parser_of(command)._actions if each.option_strings and each.dest != "help"]
    metavar = {
        action: action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else "")
        for action in actions
    }
    return {f"{action.option_strings[0]} {metavar[action]}".strip() for action in actions}


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


# --- Commands that do not run here, why, and what is checked of them instead

Check = Callable[[str], object]


def nothing(command: str) -> None:
    """It is not of this project."""


def make_knows(command: str) -> None:
    """The target is listed by `make help`, and the variables are in the Makefile."""
    _, *words = shlex.split(command)
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert {word for word in words if "=" not in word} <= targets()
    assert all(f"\n{word.partition('=')[0]} ?=" in text for word in words if "=" in word)


def parser_takes(command: str) -> None:
    """For vec-pipeline: its arguments are valid."""
    program, name, *arguments = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", command))
    assert program == "vec-pipeline"
    parser_of(name).parse_args(arguments)


def benchmark_takes(command: str) -> None:
    """The script is there, and defines the options."""
    words = shlex.split(command)
    script = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
    text = (PROJECT / script).read_text(encoding="utf-8")
    assert all(f'"{word}"' in text for word in words if re.fullmatch("--[a-z-]+", word))


def extras_exist(command: str) -> None:
    extras = pyproject()["optional-dependencies"]
    assert all(name in extras for names in re.findall(r"\[([\w,]+)\]", command) for name in names.split(","))


def llama_is_the_one_required(command: str) -> None:
    required = next(each for each in pyproject()["dependencies"] if each.startswith("llama-cpp-python"))
    script = (PROJECT / "scripts" / "install_llama.sh").read_text(encoding="utf-8")
    assert required in shlex.split(command)
    index = next(word for word in shlex.split(command) if word.startswith("https://")).rpartition("/cu")
    assert index[0] in script
    assert index[2] in script


def docker_file_has(command: str) -> None:
    for variant in re.findall(r"VARIANT=(\w+)", command) or ["cuda"]:
        assert re.search(rf"^FROM .* AS {variant}$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)


def container_takes(command: str) -> None:
    """What follows the image's name is a command of vec-pipeline."""
    parser_takes("vec-pipeline " + re.split(r"vec-pipeline(?::\w+)? ", command)[1])


def compose_has(command: str) -> None:
    text = (PROJECT / "compose.yaml").read_text(encoding="utf-8")
    services, words = yaml.safe_load(text)["services"], shlex.split(command)
    assert words[-1] == "up" or set(words) & set(services)
    assert all(f"${{{name}:-" in text for name in re.findall(r"\b([A-Z]+)=", command))


def servers(*commands: str) -> dict[str, tuple[str, Check]]:
    return dict.fromkeys(commands, ("a program of others that does not end", nothing))


def benchmarks(*commands: str) -> dict[str, tuple[str, Check]]:
    return dict.fromkeys(commands, ("takes minutes", benchmark_takes))


NOT_RUN: dict[str, tuple[str, Check]] = {
    "git clone ADDRESS vec_pipeline && cd vec_pipeline": ("the address is not known here", nothing),
    "sudo apt install git make cmake g++ python3-venv python3-dev": ("changes the machine", nothing),
    "xcode-select --install; brew install cmake python@3.12": ("changes the machine", nothing),
    "make venv": ("downloads 3 GB", make_knows),
    "make llama": ("downloads or compiles", make_knows),
    "make test": ("would run this test", make_knows),
    'make test ARGS="tests/test_export.py -x"': ("would make an environment", make_knows),
    "make check": ("would make an environment", make_knows),
    "make soak": ("takes half an hour", make_knows),
    'make run N=5 PROMPT="change the background to blue"': ("tests/test_edit_image.py has it", make_knows),
    'make run IMAGES=~/photos CONFIG=configs/edit.yaml N=5 PROMPT="Make it look like a painting by Van Gogh"': (
        "downloads 9 GB",
        make_knows,
    ),
    "make bench-gpu": ("needs a GPU", make_knows),
    "make demo-models": ("takes hours", make_knows),
    "pipx install .": ("downloads 3 GB", extras_exist),
    "pip install '.[all]'": ("downloads 3 GB", extras_exist),
    "uv tool install '.[all]'": ("downloads 3 GB", extras_exist),
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu": ("downloads", nothing),
    "pip install llama-cpp-python==0.3.36 --force-reinstall --no-deps --only-binary llama-cpp-python"
    " --extra-index-url https://abetlen.github.io/llama-cpp-python/whl/cu130": ("downloads", llama_is_the_one_required),
    ".venv/bin/pip install notebook": ("downloads", nothing),
    "docker build --tag vec-pipeline .": ("downloads", docker_file_has),
    "docker build --build-arg VARIANT=cpu --tag vec-pipeline:cpu .": ("downloads", docker_file_has),
    'docker run --rm --gpus all --volume "$PWD/examples/images:/photos:ro" vec-pipeline run /photos --config demo': (
        "needs the image and a GPU",
        container_takes,
    ),
    'docker run --rm --volume "$PWD/examples/images:/photos:ro" vec-pipeline:cpu run /photos --config demo': (
        "needs the image",
        container_takes,
    ),
    **dict.fromkeys(
        (
            "docker compose run --rm server-cpu --new-token",
            "docker compose up server-cpu",
            "docker compose run --rm worker-cpu",
            "PHOTOS=$HOME/photos CONFIG=config.yaml docker compose run --rm worker",
        ),
        ("needs the image", compose_has),
    ),
    "vec-pipeline export --to pgvector --dsn postgresql://me@host/photos": ("needs a server", parser_takes),
    "vec-pipeline export --to imagefolder --push-to-hub me/photos --out photos-set": ("needs the hub", parser_takes),
    "vec-pipeline compare ~/photos --config config.yaml --config configs/small.yaml --out comparison": (
        "starts two workers, as tests/test_compare.py does",
        parser_takes,
    ),
    "vec-pipeline check --config remote.yaml": ("needs a server", parser_takes),
    **dict.fromkeys(
        (
            "vec-pipeline run urls.csv --keep title",
            "vec-pipeline run reddit:dumps --config demo",
            "vec-pipeline run reddit:dumps --config demo-requests",
            "vec-pipeline run 'hf://google-research-datasets/conceptual_captions?split=train'"
            " --keep caption --limit 1000",
            "vec-pipeline run 'hf://google-research-datasets/conceptual_captions?split=train'"
            " --config configs/edit.yaml --limit 5",
            "vec-pipeline run urls.txt --config configs/edit.yaml --limit 5",
            'vec-pipeline run urls.csv --keep request --config configs/edit.yaml --set "edit_image.prompt={request}"',
            "vec-pipeline run s3://bucket/photos/",
            "vec-pipeline run sftp://host/photos/",
            "vec-pipeline export --to parquet --out s3://bucket/rows.parquet",
            "vec-pipeline report --out s3://bucket/report",
            "vec-pipeline run urls.txt --mirror s3://bucket/annotations.csv",
        ),
        ("needs a server; tests of the sources have servers of their own", parser_takes),
    ),
    "vec-pipeline align": ("needs 100 rows", parser_takes),
    "vec-pipeline calibrate --out calibration": ("needs 50 marked rows", parser_takes),
    **dict.fromkeys(
        (
            'vec-pipeline search "a red car" --in dino',
            'vec-pipeline search "a red flower" --in dino',
            "vec-pipeline search --like ~/photos/red-flower.png --in dino",
        ),
        ("needs rows with DINO's vectors; tests/test_align.py makes them", parser_takes),
    ),
    "vec-pipeline run 'shards/{000..099}.tar'": ("needs a hundred shards", parser_takes),
    "vec-pipeline serve --config demo --csv output/served.csv": ("does not end", parser_takes),
    "vec-pipeline serve --csv output/annotations.csv --review-only": ("does not end", parser_takes),
    "vec-pipeline serve --csv output/demo/annotations.csv --review-only": ("does not end", parser_takes),
    **dict.fromkeys(
        (
            "curl --form file=@examples/images/red-flower.png http://127.0.0.1:8000/v1/annotations",
            "curl --form file=@examples/images/purple-cat.png --form stages=describe"
            " 'http://127.0.0.1:8000/v1/annotations?wait_s=0'",
            "curl --no-buffer http://127.0.0.1:8000/v1/annotations/6d1458c3d23374858b9e093f3e128df3/events",
            "curl 'http://127.0.0.1:8000/v1/search?text=a+purple+cat&limit=2'",
            "curl http://127.0.0.1:8000/metrics",
            """curl --json '{"where": "category:vehicle", "operation": {"kind": "add_keyword", "keyword": "water"}, """
            """"preview": false, "who": "Ann"}' http://127.0.0.1:8000/v1/review/bulk""",
        ),
        ("needs the server, as tests/test_serve.py and tests/test_review.py have", nothing),
    ),
    "vec-pipeline run ~/photos --set devices=all": ("needs GPUs; tests/test_children.py has cpu:2", parser_takes),
    "vec-pipeline run /shared/photos --engine ray --address auto --output /shared/annotations.csv": (
        "needs a cluster, as tests/test_ray.py has",
        parser_takes,
    ),
    **dict.fromkeys(
        (
            "ray start --head --port=6379 --disable-usage-stats",
            "ray start --address=head:6379",
            "ray up docs/ray/aws-g5.yaml",
            'ray exec docs/ray/aws-g5.yaml "~/venv/bin/vec-pipeline run /shared/photos --engine ray --address auto'
            ' --output /shared/annotations.csv"',
            "ray down docs/ray/aws-g5.yaml",
        ),
        ("starts a cluster", nothing),
    ),
    "vec-pipeline run ~/photos --watch": ("does not end", parser_takes),
    "VEC_ENDPOINT_TOKEN=... vec-pipeline run ~/photos --config remote.yaml": ("needs a server", parser_takes),
    **servers(
        "transformers serve --host 127.0.0.1 --port 8000 Qwen/Qwen2.5-VL-7B-Instruct",
        "python -m llama_cpp.server --host 127.0.0.1 --port 8000 --model llama.gguf",
        "vllm serve Qwen/Qwen2.5-VL-7B-Instruct --max-model-len 8192 --generation-config vllm",
        "python -m sglang.launch_server --model-path Qwen/Qwen2.5-VL-7B-Instruct --port 30000",
        "llama-server -m llama.gguf --parallel 16 --ctx-size 32768",
        "llama-server -m qwen2.5-vl.gguf --mmproj mmproj.gguf --parallel 8 --ctx-size 32768",
        "OLLAMA_NUM_PARALLEL=4 ollama serve",
        "lms server start",
        "datasette photos.sqlite",
    ),
    **benchmarks(
        ".venv/bin/python -m benchmarks.mutants",
        ".venv/bin/python -m benchmarks.eyes --pictures 24 --rounds 3",
        ".venv/bin/python -m benchmarks.pairs",
        ".venv/bin/python -m benchmarks.duplicates --vectors 1000000",
        ".venv/bin/python -m benchmarks.eyes --clock wall",
        ".venv/bin/python -m benchmarks.serve --seconds 5",
        ".venv/bin/python -m benchmarks.serve --memory 10000",
        ".venv/bin/python -m benchmarks.serve --load 300",
        ".venv/bin/python -m benchmarks.eyes --hub --pictures 2 --rounds 1",
        ".venv/bin/python -m models.demo.train_translation --accuracy",
        ".venv/bin/python benchmarks/ocr.py --number 300 --page page.png",
        ".venv/bin/python benchmarks/trust.py --number 900",
        ".venv/bin/python benchmarks/trust.py --number 1600 --calibrate 50 100 200",
        ".venv/bin/python benchmarks/pipeline.py",
        ".venv/bin/python benchmarks/describe.py",
        ".venv/bin/python benchmarks/describe.py --gpu",
        ".venv/bin/python benchmarks/describe.py --only qwen3 --new-tokens 64 --slots 16 32 --rounds 3 --threads 1",
        ".venv/bin/python benchmarks/endpoint.py --delay-ms 50 500 --in-flight 16",
        ".venv/bin/python benchmarks/structure.py",
        ".venv/bin/python benchmarks/structure.py --gpu",
        ".venv/bin/python benchmarks/structure.py --real --rounds 1 --texts 16",
        ".venv/bin/python benchmarks/overhead.py --images 100000",
        ".venv/bin/python benchmarks/load.py",
        ".venv/bin/python benchmarks/resume.py --rows 1000000",
        ".venv/bin/python benchmarks/search.py",
        ".venv/bin/python benchmarks/gallery.py",
        ".venv/bin/python benchmarks/downloads.py --rounds 5",
        ".venv/bin/python benchmarks/lists.py",
    ),
}


@cache
def pyproject() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


@cache
def targets() -> set[str]:
    run = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    return {line.split()[0] for line in run.stdout.splitlines()}


@pytest.mark.parametrize("command", NOT_RUN)
def test_a_command_that_does_not_run_here_is_printed_and_valid(command: str) -> None:
    assert any(command in commands_of(page) for page in PAGES), "take it out of NOT_RUN"
    NOT_RUN[command][1](command)


# --- Commands that run


class Place(NamedTuple):
    """A home with pictures, and in it a copy of the project as git has it.

    template: what the copy is at the beginning of each page: it has rows of ~/photos.
    done: the command that has made these.
    """

    home: Path
    project: Path
    template: Path
    done: dict[str, Run]

    def reset(self) -> None:
        shutil.rmtree(self.project, ignore_errors=True)
        shutil.copytree(self.template, self.project, symlinks=True)

    def run(self, program: str, *arguments: str, text: str = "") -> Run:
        environment = {
            "HOME": str(self.home),
            "PATH": f"{self.project}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(self.project),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",  # what `check` prints of a GPU differs
            "MPLBACKEND": "Agg",
        }
        return subprocess.run(
            [program, *arguments], cwd=self.project, env={**os.environ, **environment}, input=text,
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def bash(self, script: str) -> Run:
        return self.run("bash", "-euo", "pipefail", "-c", script)


PHOTOS = (
    "brown-fish.jpg four-brown-hearts-PLAY.jpg four-pink-cats.jpg orange-boat-EDRDBAM.png purple-tree-FLUTE.png "
    "red-flower.png two-pink-arrows.png yellow-moon.png"
).split()
SCAN = "pink-square-SALE.png"
FIRST = "vec-pipeline run ~/photos"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to PostgreSQL, which is not run by root
        home = Path(name).resolve() / "me"
        made = Place(home, home / "vec_pipeline", home / "template", {})
        copy_project(made.project)
        (home / "photos").mkdir()
        (home / "scans").mkdir()
        for photo in PHOTOS:
            shutil.copy(EXAMPLES / photo, home / "photos")
        shutil.copy(EXAMPLES / SCAN, home / "scans" / "page1.png")
        made.done[FIRST] = made.bash(FIRST)
        assert made.done[FIRST].returncode == 0, made.done[FIRST].stderr
        made.project.rename(made.template)
        yield made


def copy_project(folder: Path) -> None:
    """The files that git has or would add; every configuration is the demo's, since its models need no download."""
    listed = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda each: (PROJECT / each).is_file(), files.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    for path in (folder / "config.yaml", *(folder / "configs").glob("*.yaml")):
        path.write_text(DEMO, encoding="utf-8")
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        (folder / ".venv" / path.name).symlink_to(path)
    for mark in ("run", "dev"):  # newer than what `make` would install again for
        (folder / ".venv" / mark).unlink(missing_ok=True)
        (folder / ".venv" / mark).touch()


OUTPUT = re.compile(r"(?:--output|--out|--html) ([^\s-]\S*)")


def outputs(command: str) -> list[str]:
    """The files that a command says it writes."""
    if command.startswith("make run"):
        return ["output/annotations.csv" if "CONFIG=config.yaml" in command else "output/demo/annotations.csv"]
    if command.startswith("vec-pipeline check") or "--dry-run" in command:
        return []
    is_report = command.startswith("vec-pipeline report")
    return [f"{path}/index.html" if is_report else path for path in OUTPUT.findall(command)]


def normal(text: str) -> str:
    """Without what differs from run to run: the digits of numbers."""
    return re.sub(r"\d+(?:[.,:]\d+)*", "0", text)


def check_printed(printed: str, run: Run, home: Path) -> None:
    """What a page shows is what was printed; `...` stands for anything, and numbers may differ."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    got = normal(run.stdout.replace(str(home), "/home/me"))
    assert doctest.OutputChecker().check_output(normal(printed), got, flags), (
        f"{printed}\n--- was in fact\n{run.stdout}"
    )


def has_to_run(page: Path) -> bool:
    """Whether there is something to run; docs/extending.md has tests of its own."""
    is_python = any(block.language == "python" for block in blocks(page))
    return page.name != "extending.md" and (is_python or bool(set(commands_of(page)) - set(NOT_RUN)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:platformdirs")  # of a missing XDG_RUNTIME_DIR, by pgserver
@pytest.mark.parametrize("page", [*filter(has_to_run, PAGES)], ids=name_of)
def test_what_a_page_prints_runs(page: Path, place: Place) -> None:
    found = blocks(page)
    place.reset()
    if "--to pgvector --out" in page.read_text(encoding="utf-8"):
        pytest.importorskip("pgserver")
    for block, after in zip(found, [*found, Block("", "")][1:], strict=True):
        if block.language == "sh":
            run_commands(block, after.text if after.language == "text" else "", place)
    run_python("\n".join(block.text for block in found if block.language == "python"), place)
    for block in found:
        if block.language == "sql":
            run_sql(block.text, place.project / "output" / "postgres")


COMMAND = re.compile(r"^(?:[A-Z_]+=\S* )*(?:\.venv/|vec-pipeline |make |python3? |pip|docker |sudo )", re.MULTILINE)


def test_every_block_is_tested() -> None:
    """By its language; `text` is what a command prints, and never a command itself."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("sh", "text", "python", "sql", "yaml"), page
            assert block.language != "text" or not COMMAND.search(block.text), page


def run_commands(block: Block, printed: str, place: Place) -> None:
    here = [command for command in block.lines if command not in NOT_RUN]
    script = "\n".join(here)
    run = place.done.get(script) or place.bash(script)
    assert run.returncode == 0, f"{here}\n{run.stdout}\n{run.stderr}"
    for path in [path for command in here for path in outputs(command)]:
        assert (place.project / path).exists(), f"{path} is missing after {here}"
    if printed and here:
        check_printed(printed, run, place.home)


def run_python(program: str, place: Place) -> None:
    if program:
        run = place.run(f"{place.project}/.venv/bin/python", "-W", "ignore", "-", text=program)
        assert run.returncode == 0, f"{program}\n{run.stderr}"


def run_sql(query: str, folder: Path) -> None:
    """In the database that the page has exported to."""
    import pgserver
    import psycopg

    with pgserver.get_server(folder) as server, psycopg.connect(server.get_uri()) as connection:
        found = connection.execute(query).fetchall()
    assert len(found) == 5
    assert found[0][1] == 0, "each picture is nearest to itself"


def test_the_notebook_finds_the_nearest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(place.template)
    (program,) = [block.text for block in blocks(DOCS / "loading.md") if "import matplotlib" in block.text]
    found: dict[str, Any] = {}
    exec(program, found)
    assert len(found["nearest"]) == 5
    assert found["nearest"][0] == 0, "each picture is most like itself"
    assert len(matplotlib.pyplot.gca().collections) == found["table"]["categories"].nunique()


def test_make_passes_everything_on() -> None:
    """What `make` would run, without running it: the environment of the tests may be another."""
    plan = subprocess.run(
        ["make", "-n", "run", "IMAGES=/my photos", "CONFIG=config.yaml", "ARGS=--limit 100"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert '.venv/bin/python run.py "/my photos" --config "config.yaml" --limit 100' in plan


# --- What pages say, and what is there


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_has_its_options(command: str) -> None:
    listed = rows(DOCS / f"{command}.md", r"`(--[^`]+)`")
    assert len(listed) == len(set(listed))
    assert set(listed) == options_of(command)


def test_every_option_that_is_named_exists() -> None:
    known = {option.split()[0] for command in COMMANDS for option in options_of(command)}
    known |= {word for command in NOT_RUN for word in command.split() if word.startswith("--")} | {
        "--help",
        "--version",
    }
    for page in PAGES:
        named = {option for span in spans(page) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
        assert page.name in OF_EXPERIMENTS or named <= known, page


def test_every_target_of_make_that_is_named_exists() -> None:
    text = "\n".join(text for page in PAGES for text in (*spans(page), *commands_of(page)))
    named = set(re.findall(r"^make (?:[A-Z]+=\S+ )*([a-z][a-z-]+)\b", text, re.MULTILINE))
    assert {"run", "venv", "llama", "test", "check", "help"} <= named
    assert named <= targets()


OF_OTHERS = {"enable_thinking"}  # of a chat template


def config_options() -> tuple[set[str], dict[str, set[str]]]:
    """Names of the worker's options and of what an entry of `stages:` may hold; and of each stage's, by its name."""
    of_stages = {name: {field.name for field in fields(stage_class({"use": name}))} for name in stage_names()}
    own = {field.name for field in fields(Config)}
    return own | {"use", *PLACEMENT}.union(*of_stages.values()), of_stages


def test_every_option_of_a_configuration_that_is_named_exists() -> None:
    known, of_stages = config_options()
    text = "\n".join(text for page in PAGES for text in (*spans(page), *commands_of(page)))
    assert {"describe.batch_size", "chunk_size"} <= set(re.findall(r"--set '?([a-z_.]+)=", text))
    for name in re.findall(r"--set '?([a-z_.]+)=", text):
        stage, _, option = name.rpartition(".")
        assert option in (of_stages[stage] if stage else known), name
    for page in PAGES:
        for span in spans(page):
            if (found := re.fullmatch(r"([a-z_]+):(?: [^: ]+| [\[{].*)?", span)) and page.name not in OF_EXPERIMENTS:
                assert found[1] in known | OF_OTHERS, f"{span} in {page}"
            if (found := re.fullmatch(r"([a-z_]+)\.([a-z_]+)", span)) and found[1] in of_stages:
                assert found[2] in of_stages[found[1]], f"{span} in {page}"


def test_configurations_that_are_printed_are_valid(tmp_path: Path) -> None:
    printed = [
        block.text
        for page in PAGES
        if page.name != "extending.md"
        for block in blocks(page)
        if block.language == "yaml"
    ]
    assert printed
    for text in printed:
        path = tmp_path / "printed.yaml"
        path.write_text(text, encoding="utf-8")
        check_wiring(load_config(path).stages, {})


def test_columns_and_exit_statuses_are_those_of_the_code() -> None:
    extra = load_config(PROJECT / "config.yaml").extra_columns({})
    columns = prose(DOCS / "run.md").partition("## Columns")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", columns, re.MULTILINE)) == (*COLUMNS, *extra)
    assert [int(status) for status in rows(DOCS / "run.md", r"(\d+)")] == [ALL_FINE, SOME_ERRORS, UNUSABLE, INTERRUPTED]
    assert [int(status) for status in rows(DOCS / "check.md", r"(\d+)")] == [ALL_FINE, UNUSABLE]


def test_the_row_of_the_readme_is_that_of_the_demo(place: Place) -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", README.partition("## Try it")[0], re.MULTILINE))
    name = Path(re.sub(r".*\((.*)\)", r"\1", shown.pop("image_path"))).name
    table = load_annotations(place.template / "output" / "annotations.csv")
    (row,) = [row for _, row in table.iterrows() if Path(row["image_path"]).name == name]
    for column, text in shown.items():
        if COLUMNS.get(column) == "vector":
            assert text == f"{len(row[column])} numbers"
        elif column == "text_confidence":
            assert abs(row[column] - float(text)) < 1e-3
        else:
            assert text == row[column]
    assert len(shown) >= 6


def test_sizes_of_downloads_are_those_of_the_models() -> None:
    text = re.sub(r"\s+", " ", (DOCS / "configuration.md").read_text(encoding="utf-8"))
    for name in CONFIGS:
        models = [getattr(stage, "model", "") for stage in load_config(PROJECT / name).stages]
        size = f"{sum(HUB_GB[model] for model in models if model):.0f} GB"
        (row,) = re.findall(rf"^\| `{name}` \|.*$", README, re.MULTILINE)
        assert f"| {size} |" in row
        assert f"{size} for `{name}`" in text


def test_extras_are_those_of_the_package() -> None:
    assert set(rows(DOCS / "install.md", r"`(\w+)`")) == set(pyproject()["optional-dependencies"])


def test_suffixes_of_pictures_are_those_of_the_code() -> None:
    (table,) = re.findall(r"\| format \|.*?\n\n", (DOCS / "sources.md").read_text(encoding="utf-8"), re.DOTALL)
    assert set(re.findall(r"(?<=[ |])\.\w+", table)) == kinds.SUFFIXES


def messages() -> list[re.Pattern[str]]:
    """Every text in the code, with `.*` where it has a value; those that hold hardly more than values left out."""
    found = [[text] for text in re.findall(r'"([^"\n]+)"', (PROJECT / "Makefile").read_text(encoding="utf-8"))]
    for path in (PROJECT / "vec_pipeline").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            each.targets[0].id: each.value.value
            for each in tree.body
            if isinstance(each, ast.Assign)
            and isinstance(each.targets[0], ast.Name)
            and isinstance(each.value, ast.Constant)
        }
        found += [literals(node, constants) for node in ast.walk(tree)]
    kept = [parts for parts in found if sum(map(len, parts)) > 10]
    return [re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL) for parts in kept]


def literals(node: ast.AST, constants: Mapping[str, Any]) -> list[str]:
    """What stands around the values of an f-string, or a whole string."""
    if isinstance(node, ast.Constant):
        return [node.value.strip()] if isinstance(node.value, str) else []
    if not isinstance(node, ast.JoinedStr):
        return []
    parts = [""]
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts[-1] += str(value.value)
        elif isinstance(value, ast.FormattedValue) and ast.unparse(value.value) in constants:
            parts[-1] += str(constants[ast.unparse(value.value)])
        else:
            parts.append("")
    return parts


def test_messages_that_are_explained_are_those_of_the_program() -> None:
    known = messages()
    lines = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    listed = {text for line in lines if line.startswith("| `") for _, text in SPAN.findall(line.split(" | ")[0])}
    assert len(listed) > 40
    unknown = [text for text in listed - {OF_TORCH} if not is_message(text, known)]
    assert not unknown


def is_message(text: str, known: list[re.Pattern[str]]) -> bool:
    """Whether the program can say it: as it is, or in a row's `error`, after `stage: ExceptionName: `."""
    in_row = re.sub(r"^[a-z_]+: (?=[A-Z]\w+: )", "", text)
    name, _, of_exception = in_row.partition(": ")
    if of_exception == "..." and name in EXCEPTIONS:
        return True
    return any(pattern.fullmatch(each) for each in (text, in_row, of_exception) for pattern in known)


OF_TORCH = "operator torchvision::nms does not exist"
EXCEPTIONS = ("FileNotFoundError", "OutOfMemoryError", "LlamaDied")  # whose messages are those of libraries


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "ARCHITECTURE.md", PROJECT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w/-]+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8")))
    assert linked == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"README.md"}
    assert "(docs/README.md)" in README


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        named = {
            name
            for span in spans(page)
            for name in re.findall(
                r"(?:vec_pipeline|configs|models|examples|benchmarks|docs|scripts|tests)/[\w./-]+", span
            )
        }
        assert all((PROJECT / name).exists() for name in named), page


# --- docs/stages.md and docs/stages/

STAGE_PAGES = sorted((DOCS / "stages").glob("*.md"))
EYES = yaml.safe_load((PROJECT / "configs" / "demo-eyes.yaml").read_text(encoding="utf-8"))
# Those that show columns which the bundled models write.
EXAMPLE_PAGES = [DOCS / "stages" / f"{each['use']}.md" for each in EYES["stages"] if each["use"] != "open_image"]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-\d+)?")


def table(page: Path, header: str) -> list[list[str]]:
    """The rows of the tables of a page that have this header, cell by cell; a cell holds no bar."""
    found = re.findall(rf"^\| {re.escape(header)} \|\n\|[-|]+\|\n((?:\|.*\n)+)", prose(page), re.MULTILINE)
    return [[cell.strip() for cell in line[1:-1].split("|")] for block in found for line in block.splitlines()]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def stage_of(name: str) -> Stage:
    """With its defaults."""
    cls = stage_class({"use": name})
    needed = [each.name for each in fields(cls) if each.default is each.default_factory is MISSING]
    options: dict[str, Any] = dict.fromkeys(needed, "a/b")
    return cls(**options)


def default_of(option: Field[Any]) -> str:
    """As the pages write it."""
    if option.default is MISSING:
        return "required"
    if isinstance(option.default, tuple):
        return f"`[{', '.join(option.default)}]`"
    text = str(option.default).lower() if isinstance(option.default, bool) else str(option.default)
    return f"`{text}`" if text else "empty"


def test_every_stage_has_a_page() -> None:
    assert [page.stem for page in STAGE_PAGES] == stage_names()


@pytest.mark.parametrize("page", STAGE_PAGES, ids=name_of)
def test_the_page_of_a_stage_has_its_options_and_their_defaults(page: Path) -> None:
    cls = stage_class({"use": page.stem})
    options = [each for each in fields(cls) if each.name in option_names(cls) - {*PLACEMENT}]
    listed = table(page, "option | default | meaning")
    assert len(listed) == len(options)
    assert {row[0]: row[1] for row in listed} == {f"`{each.name}`": default_of(each) for each in options}


@pytest.mark.parametrize("page", STAGE_PAGES, ids=name_of)
def test_the_page_of_a_stage_has_what_it_writes_and_of_which_type(page: Path) -> None:
    stage = stage_of(page.stem)
    listed = [*table(page, "column | type | what it holds"), *table(page, "value | type | what it holds")]
    written = {**stage.writes, **{name: f"{kind}, not saved" for name, kind in stage.intermediates.items()}}
    assert {name: row[1] for row in listed for name in names_in(row[0])} == written


@pytest.mark.parametrize("page", STAGE_PAGES, ids=name_of)
def test_the_page_of_a_stage_is_short_and_says_what_it_needs_and_what_goes_wrong(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.stem}: ")
    assert "**What it needs" in text
    assert "\n## What goes wrong\n" in text
    assert text.count("\n") <= 80


def test_the_table_of_the_stages_is_that_of_the_code() -> None:
    listed = table(DOCS / "stages.md", "stage | reads | writes | model | `config.yaml`")
    usual = {stage.name: stage for stage in load_config(PROJECT / "config.yaml").stages}
    others = {stage.name: stage for stage in load_config(PROJECT / "configs" / "eyes.yaml").stages}
    written = {entry["use"]: entry.get("model", "") for entry in yaml.safe_load(PRODUCTION)["stages"]}
    assert len(listed) == len(stage_names())
    for link, reads, writes, model, is_on in listed:
        name = link[1:].partition("]")[0]
        assert link == f"[{name}](stages/{name}.md)"
        stage = stage_of(name)
        assert set(stage.reads) <= set(names_in(reads)) <= {*stage.reads, *stage.optional}, name
        assert set(names_in(writes)) == set(stage.writes), name
        assert is_on == ("on" if name in usual else "off")
        expected = written[name] if name in usual else getattr(others.get(name), "model", "")
        assert names_in(model) == [expected] * bool(expected), name


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The rows of the pictures that pages show, of a run with every stage on, by the pictures' paths in the project."""
    output = tmp_path_factory.mktemp("eyes") / "a.csv"
    pictures = sorted({example_of(page)[0] for page in EXAMPLE_PAGES})
    arguments = [*pictures, "--config", "demo-eyes", "--output", str(output)]
    run = subprocess.run(
        [sys.executable, "run.py", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == ALL_FINE, run.stderr
    with output.open(newline="", encoding="utf-8") as file:
        return {name_of(Path(row["image_path"])): row for row in csv.DictReader(file)}


def example_of(page: Path) -> tuple[str, dict[str, str]]:
    """The picture of the printed example of a page, and the values by name; a value may go on in an indented line."""
    picture, printed = re.findall(
        r"^Of `(\S+\.(?:png|jpg))`.*?```text\n(.*?)```", page.read_text("utf-8"), re.M | re.S
    )[0]
    lines = re.sub(r"\n +", " ", printed).splitlines()
    return picture, dict(line.split(maxsplit=1) for line in lines)


@pytest.mark.parametrize("page", EXAMPLE_PAGES, ids=name_of)
def test_the_example_of_a_stage_is_what_it_writes(page: Path, cells: dict[str, dict[str, str]]) -> None:
    picture, shown = example_of(page)
    assert stage_of(page.stem).writes.keys() <= shown.keys()
    for name, text in shown.items():
        cell = cells[picture][name]
        numbers = list(map(float, NUMBER.findall(cell)))
        if text.endswith("numbers"):  # of a vector, the first few and their number
            first, _, number = text.partition(", ...], ")
            assert len(numbers) == int(number.split()[0])
            numbers = numbers[: first.count(",") + 1]
            text = first
        else:
            assert NUMBER.sub("0", text) == NUMBER.sub("0", cell)
        assert list(map(float, NUMBER.findall(text))) == pytest.approx(numbers, abs=0.01, rel=0.02), name


def test_the_example_of_open_image_is_what_it_finds() -> None:
    picture, shown = example_of(DOCS / "stages" / "open_image.md")
    stage = OpenImage(max_size_px=112)
    row = {"content": LocalFile(str(PROJECT / picture)), "image_path": str(PROJECT / picture)}
    (found,) = stage.run(None, [row], 1)
    image = found.pop("image")
    assert shown.pop("image") == f"{image.mode}, {image.width} x {image.height} pixels"
    assert shown == {name: value for name, value in found.items() if value is not None}


# --- docs/extending.md

MISTAKES = [  # a file of the page, what is replaced in it and by what, and what is said then
    (
        "palette.py",
        '"tint": tint',
        '"tnit": tint',
        "palette returned 'tnit', which it does not declare (mean_rgb, tint): fix the stage",
    ),
    (
        "palette.py",
        '"tint": "text"',
        '"tint": "number"',
        "palette returned 'tint' as a str, and declares it as number: fix the stage",
    ),
    (
        "palette.py",
        '"tint": "text"',
        '"tint": "string"',
        "palette: `writes` declares tint as 'string': the types are text, number, vector, json, file",
    ),
    (
        "palette.py",
        '{"mean_rgb": "vector", "tint": "text"}',
        '("mean_rgb", "tint")',
        "palette: `writes` is a tuple: make it a dict of names and types",
    ),
    (
        "palette.py",
        ", at_once: int",
        "",
        "palette: `run` must take (self, model, rows, at_once)",
    ),
    (
        "palette.yaml",
        "  - use: open_image\n",
        "",
        "stages: palette reads image, which no earlier stage writes: "
        "add a stage that writes image before it, or name a source that brings it",
    ),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder with the files of docs/extending.md, two pictures, and the same pictures in an archive."""
    for text, name in re.findall(r"^```\w+\n(# ([\w.]+).*?)^```$", EXTENDING_PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    (tmp_path / "photos").mkdir()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("brown-fish.jpg", "plain-blue.png"):
            shutil.copy(EXAMPLES / name, tmp_path / "photos")
            archive.write(EXAMPLES / name, name)
    return tmp_path


def run_page(page: Path, source: str, config: str, *options: str) -> Run:
    arguments = [page / source, "--config", page / config, "--output", page / "out" / "a.csv", *options]
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(page), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_the_stage_of_the_page_runs_under_two_names(page: Path) -> None:
    run = run_page(page, "photos", "palette.yaml")
    assert run.returncode == ALL_FINE, run.stderr
    fish, blue = (row for _, row in load_annotations(page / "out" / "a.csv").iterrows())
    assert (fish["tint"], fish["strict_tint"]) == ("red", "")
    assert (blue["tint"], blue["strict_tint"]) == ("blue", "blue")
    with Image.open(page / "photos" / "plain-blue.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32).reshape(-1, 3)
    for name in ("mean_rgb", "strict_rgb"):
        np.testing.assert_allclose(blue[name], pixels.mean(axis=0), atol=1)


@pytest.mark.parametrize(("name", "right", "wrong", "message"), MISTAKES)
def test_a_mistake_in_the_stage_of_the_page_is_named_as_it_says(
    name: str, right: str, wrong: str, message: str, page: Path
) -> None:
    text = (page / name).read_text()
    assert right in text
    (page / name).write_text(text.replace(right, wrong))
    run = run_page(page, "photos", "palette.yaml")
    assert run.returncode == UNUSABLE
    assert run.stderr.splitlines()[-1] == f"run.py: {message}"


def test_the_page_names_these_mistakes() -> None:
    assert set(re.findall(r"\| ``(.+?)`` \|", EXTENDING_PAGE)) == {message for *_, message in MISTAKES}


def test_the_source_of_the_page_resumes_and_prunes(page: Path) -> None:
    run = run_page(page, "photos.zip", "captions.yaml")
    assert run.returncode == ALL_FINE, run.stderr
    table = load_annotations(page / "out" / "a.csv")
    assert list(table["image_path"]) == [f"{page}/photos.zip/{name}" for name in ("brown-fish.jpg", "plain-blue.png")]
    assert list(table["caption"]) == ["brown-fish", "plain-blue"]
    assert np.stack(table["caption_vector"]).shape == (2, 128)
    assert "2 images: 2 done, 0 to do" in run_page(page, "photos.zip", "captions.yaml").stdout
    with zipfile.ZipFile(page / "photos.zip", "w") as archive:
        archive.write(EXAMPLES / "plain-blue.png", "plain-blue.png")
    assert "1 row to drop" in run_page(page, "photos.zip", "captions.yaml", "--prune").stdout
    assert list(load_annotations(page / "out" / "a.csv")["caption"]) == ["plain-blue"]
    missing = run_page(page, "others.zip", "captions.yaml")
    assert missing.returncode == UNUSABLE
    assert missing.stderr == f"run.py: {page}/others.zip does not exist: name a zip file\n"
