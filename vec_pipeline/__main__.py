"""All commands: `vec-pipeline COMMAND`, or `python -m vec_pipeline COMMAND`."""

import argparse
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vec_pipeline import __version__, commands
from vec_pipeline.record import UserError
from vec_pipeline.terminal import INTERRUPTED, end_process, protect

UNUSABLE = 2
PACKAGE_FOLDER = Path(__file__).resolve().parent
LIBRARIES = (  # modules of the dependencies that pyproject.toml names
    "PIL accelerate aiohttp fsspec gensim httpx2 huggingface_hub jinja2 llama_cpp numpy open_clip orjson pandas "
    "pillow_heif psutil pyarrow safetensors scipy sentence_transformers sklearn torch torchvision tqdm transformers "
    "watchfiles yaml yarl"
).split()


def main(arguments: Sequence[str] | None = None, command: str = "", program: str = "vec-pipeline") -> int:
    """Run one command and return its exit status; 2 for a UserError, 130 when interrupted.

    command: the only one there is, under the name `program`; empty for all of them.
    """
    parser = argparse.ArgumentParser(prog=program, description="Annotate images, and use the annotations.")
    if command:
        add_command(command, parser)
    else:
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for _, name, _ in pkgutil.iter_modules(commands.__path__):
            add_command(name, subparsers.add_parser(name, help=purpose(name)))
    options = parser.parse_args(with_queries(sys.argv[1:] if arguments is None else arguments))
    set_defaults()
    try:
        check_libraries()
        if config := getattr(options, "config", None):
            options.config = list(map(config_path, config)) if isinstance(config, list) else config_path(config)
        status: int = options.run(options)
        return status
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def with_queries(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--where -flags` as `--where=-flags`: argparse would take the query for an option."""
    found = list(arguments)
    for place in range(len(found) - 2, -1, -1):
        if found[place] == "--where":
            found[place : place + 2] = [f"--where={found[place + 1]}"]
    return found


def set_defaults() -> None:
    """Set what libraries read from the environment when they are imported, unless the user has."""
    # Threads that wait by spinning made torch 27 times slower on two cores that others used as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Batches of different sizes leave gaps in torch's memory, into which later ones do not fit. Windows has no such
    # segments, and under WSL and on Jetson the first allocation fails with them.
    has_segments = sys.platform == "linux" and not re.search("microsoft|tegra", os.uname().release, re.IGNORECASE)
    if has_segments and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def add_command(name: str, parser: argparse.ArgumentParser) -> None:
    module = importlib.import_module(f"vec_pipeline.commands.{name}")
    parser.description = purpose(name)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)


def purpose(name: str) -> str:
    """The first line of a command's docstring."""
    return (importlib.import_module(f"vec_pipeline.commands.{name}").__doc__ or "").partition("\n")[0]


def check_libraries() -> None:
    """Raise UserError where dependencies are not installed, as for `python3 run.py` with the system's Python."""
    missing = [name for name in LIBRARIES if name not in sys.modules and not importlib.util.find_spec(name)]
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise UserError(
            f"{sys.executable} has no {names}: run `make venv` in the project's folder and use .venv/bin/python, "
            "or install with `pip install .`"
        )


def config_path(path: Path) -> Path:
    """The configuration that `--config` names: a file, or one that comes with the project, such as `demo`.

    Like a model's path, it is relative to the current folder or to the project. Returned unchanged if there is none.
    """
    bundled = PACKAGE_FOLDER / "bundled"  # in a wheel, see hatch_build.py
    project = bundled if bundled.is_dir() else PACKAGE_FOLDER.parent
    candidates = (path, project / path, project / "configs" / f"{path}.yaml")
    return next(filter(os.path.isfile, candidates), path)


def entry() -> None:
    """The program `vec-pipeline`."""
    protect()
    end_process(main())


if __name__ == "__main__":
    entry()
