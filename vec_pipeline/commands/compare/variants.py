"""The configurations that are compared: what each is called, where its rows are, and how its worker is run."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vec_pipeline import settings
from vec_pipeline.config import Config, load_config
from vec_pipeline.record import UserError
from vec_pipeline.sinks.csv_rows import contents_of, read_header

MOST = 9  # each has a key on the page
RESERVED = {"", ".", "..", "index.html", "compare.json", "gallery"}


@dataclass(frozen=True)
class Variant:
    """A configuration that is compared.

    name: in the table, on the page, and of its folder.
    path: its file.
    csv: its rows.
    """

    name: str
    path: Path
    config: Config
    csv: Path

    def stage_that_writes(self, column: str) -> str:
        """The name of the stage, empty where there is none."""
        return next((stage.name for stage in self.config.stages if column in stage.columns), "")

    def rows_made(self) -> int:
        """How many rows there are. Raises UserError where they were made with other settings, or cannot be read."""
        if not self.csv.exists():
            return 0
        with self.csv.open("rb", buffering=0) as file:
            header, _ = read_header(file)
        try:
            rows = contents_of(self.csv, header).rows
            changed = settings.changed_settings(settings.recorded_settings(self.csv), self.config.stages, header)
        except UserError as error:
            raise UserError(named(self.path, str(error))) from None
        if rows and changed:
            raise UserError(
                f"{self.path}: {self.csv} was made with other settings ({', '.join(changed[:3])}"
                f"{', ...' if changed[3:] else ''}): restore them, name another --out, or delete {self.csv.parent}"
            )
        return rows

    def arguments(self, sources: Sequence[str], sets: Sequence[str], out: Path, limit: int) -> list[str]:
        """The arguments of `vec-pipeline run` for `limit` pictures beside those that have a row."""
        exclude = [*self.config.exclude, glob.escape(str(out.resolve()))]  # its thumbnails are pictures too
        values = ["log_level=info", *sets, f"exclude={json.dumps(exclude)}"]  # the log says how long models load
        options = ["--config", str(self.path), "--output", str(self.csv), "--limit", str(limit)]
        names = [f"./{source}" if source.startswith("-") else source for source in sources]  # no options of `run`
        return [*names, *options, *(f"--set={value}" for value in values)]


def variants_of(paths: Sequence[Path], sets: Sequence[str], out: Path) -> list[Variant]:
    """Read the configurations. Raises UserError, which names the one that is unusable."""
    if len(paths) > MOST:
        raise UserError(f"{len(paths)} configurations are given, and at most {MOST} can be compared")
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"--config {path} is given twice: compare different configurations")
    found = []
    for name, path in zip(names_of(paths), paths, strict=True):
        try:
            config = load_config(path, sets)
        except UserError as error:
            raise UserError(named(path, str(error))) from None
        found.append(Variant(name, path, config, out / name / "annotations.csv"))
    return found


def named(path: Path, message: str) -> str:
    """A message that begins with the configuration it is about."""
    return message if message.startswith(str(path)) else f"{path}: {message}"


def names_of(paths: Sequence[Path]) -> list[str]:
    """The names of files without their suffix, with as many folders above as tell them apart: a-demo, b-demo.

    Raises UserError where these do not.
    """
    parts = [(*path.resolve().parts[1:-1], path.stem) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names) and not RESERVED.intersection(names):
            return names
    raise UserError(f"{' and '.join(map(str, paths))} cannot be told apart by their names: rename one")
