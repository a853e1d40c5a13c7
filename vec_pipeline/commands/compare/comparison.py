"""Runs each configuration over the same pictures, and compares their rows."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vec_pipeline.annotations import CsvReader, content_reader
from vec_pipeline.commands.compare import figures, site
from vec_pipeline.commands.compare.differences import compared
from vec_pipeline.commands.compare.variants import Variant, named, variants_of
from vec_pipeline.commands.compare.worker import Meter, run_worker
from vec_pipeline.commands.report.thumbnails import short_hash
from vec_pipeline.commands.run import ALL_FINE, SOME_ERRORS
from vec_pipeline.record import UserError, Values
from vec_pipeline.terminal import INTERRUPTED, plural

FACTS = {"categories": "Category", "keywords": "Keywords", "image_text": "Text on the image"}

Found = dict[str, Any]


def compare(paths: Sequence[Path], sources: Sequence[str], out: Path, limit: int, sets: Sequence[str]) -> int:
    """Annotate the first `limit` pictures with each configuration, and compare the rows; return the exit status.

    Raises UserError, which names the configuration, and OSError where the folder cannot be written.
    """
    variants = variants_of(paths, sets, out)
    site.claim(out)
    made = [variant.rows_made() for variant in variants]
    for variant, rows in zip(variants, made, strict=True):
        if not rows:  # so that a mistake in the last one shows before hours of work on the first
            check(variant, *run_worker(["run", "--dry-run", *variant.arguments(sources, sets, out, limit)], ""))
    statuses = [annotate(*each, sources, sets, out, limit) for each in zip(variants, made, strict=True)]
    found = write(variants, out, limit)
    print("", figures.as_text(figures.table_of(found["configurations"])), "", *found["notes"], sep="\n")
    print(f"open {site.index_of(out)}")
    return max(statuses)


def annotate(variant: Variant, rows: int, sources: Sequence[str], sets: Sequence[str], out: Path, limit: int) -> int:
    """Make the rows that are missing, and return the exit status of `run`."""
    variant.csv.parent.mkdir(parents=True, exist_ok=True)
    meter = Meter(variant.csv, rows)
    try:
        arguments = ["run", *variant.arguments(sources, sets, out, max(0, limit - rows))]
        return check(variant, *run_worker(arguments, variant.name, meter))
    finally:
        meter.close()


def check(variant: Variant, status: int, failure: str) -> int:
    """Return the exit status of a worker. Raises UserError where it could not do its work."""
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status not in (ALL_FINE, SOME_ERRORS):
        reason = failure or f"the worker ended with status {status}: run the same command again to resume"
        raise UserError(named(variant.path, reason))
    return status


def write(variants: Sequence[Variant], out: Path, limit: int) -> Found:
    """Compare the rows, write compare.json and the page, and return what compare.json holds."""
    all_rows = [rows_of(variant.csv) for variant in variants]
    keys = [key for key in all_rows[0] if all(key in rows for rows in all_rows)][:limit]
    rows = [[rows[key] for key in keys] for rows in all_rows]
    found = [
        figures.figures_of(variant, each, len(whole))
        for variant, each, whole in zip(variants, rows, all_rows, strict=True)
    ]
    notes = [figures.add_clip_differences(found, list(map(figures.clip_of, variants)), rows)]
    if len(keys) < min(limit, max(map(len, all_rows))):
        notes.append(f"Only the pictures that every configuration has a row of are compared: {len(keys):,}.")
    pictures = [picture_of(key, variants, answers) for key, answers in zip(keys, zip(*rows, strict=True), strict=True)]
    pictures.sort(key=lambda picture: -float(picture["disagreement"]))
    votes = valid_votes(site.read(out).get("votes", []), found, pictures)
    figures.add_win_rates(found, [vote["winner"] for vote in votes])
    written = {
        "id": short_hash(str(out.resolve())),
        "configurations": found,
        "notes": [note for note in notes if note],
        "votes": votes,
        "pictures": [{name: each[name] for name in ("id", "image_path", "disagreement")} for each in pictures],
    }
    site.publish(out, written, pictures, content_reader(*(variant.csv for variant in variants)))
    return written


def rows_of(csv: Path) -> dict[str, Values]:
    """The rows by key, without vectors; a column that the CSV lacks is None."""
    with CsvReader(csv) as reader:
        return {row["image_path"]: row for block in reader.blocks(figures.COLUMNS) for row in block.table.to_pylist()}


def picture_of(key: str, variants: Sequence[Variant], rows: Sequence[Values]) -> Found:
    """What the page shows of a picture. Its id changes with the answers, so that no vote counts for others."""
    disagreement, texts = compared([row["text"] for row in rows])
    names_and_texts = [[variant.name, row["text"]] for variant, row in zip(variants, rows, strict=True)]
    identity = short_hash(json.dumps([key, names_and_texts]))
    differing = [name for name in FACTS if len({row[name] for row in rows}) > 1]
    answers = [
        {
            "configuration": number,
            "text": text,
            "facts": [[FACTS[name], row[name], name in differing] for name in FACTS if row[name]],
            "error": row["error"],
            "scores": [f"{name} {row[name]}" for name in ("text_confidence", "clip_score", "flags") if row[name]],
        }
        for number, (text, row) in enumerate(zip(texts, rows, strict=True))
    ]
    random.Random(identity).shuffle(answers)  # the same at every visit, and no configuration is always the first
    return {"id": identity, "image_path": key, "disagreement": round(disagreement, 4), "answers": answers}


def count_votes(paths: Sequence[Path], out: Path) -> None:
    """Record the votes of files, one of each voter, in compare.json, and print how often each configuration won.

    Raises UserError where there is no comparison, or no vote on its answers.
    """
    written = site.read(out)
    if "pictures" not in written:
        raise UserError(f"{out} holds no finished comparison: make one with --config and SOURCE")
    given = [vote for path in paths for vote in votes_in(path)]
    votes = valid_votes(given, written["configurations"], written["pictures"])
    if not votes:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names} holds no vote on the answers in {out}: export them from {site.index_of(out)}")
    figures.add_win_rates(written["configurations"], [vote["winner"] for vote in votes])
    site.write(out, {**written, "votes": votes})
    print(figures.as_text(figures.table_of(written["configurations"])), "", sep="\n")
    ties = sum(vote["winner"] is None for vote in votes)
    print(f"{plural(len(votes), 'vote')}, {ties:,} of them {'a tie' if ties == 1 else 'ties'}")
    if len(votes) < len(given):
        print(f"{plural(len(given) - len(votes), 'vote')} on other answers not counted")


def votes_in(path: Path) -> list[Found]:
    """The votes of a file that the page has exported, one a picture. Raises UserError where it is none."""
    try:
        votes = {vote["id"]: vote["winner"] for vote in json.loads(path.read_text(encoding="utf-8"))["votes"]}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): export the votes from the page") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} holds no votes: export them from the page") from None
    return [{"id": key, "winner": winner} for key, winner in votes.items()]


def valid_votes(votes: Sequence[Found], found: Sequence[Found], pictures: Sequence[Found]) -> list[Found]:
    """Those on answers that are there, for a configuration that is compared, or for none."""
    ids, winners = {picture["id"] for picture in pictures}, [None, *(each["name"] for each in found)]
    return [vote for vote in votes if vote["id"] in ids and vote["winner"] in winners]
