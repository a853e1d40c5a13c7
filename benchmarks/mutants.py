"""Break small things one at a time, and see whether a test notices: prints the table of docs/mutants.md.

python -m benchmarks.mutants [--only WORD] [--jobs 2]. Each mutation is made in a copy of the working tree, where the
tests named beside it must fail; one that they do not notice survives, and the exit status is 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", ".*_cache", ".training")
TIMEOUT_S = 300


@dataclass(frozen=True)
class Mutation:
    """One change: `old` stands once in `file`, and the tests fail with `new` in its place."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "a stage refills no slots", "batches.py", "REFILLS = 8", "REFILLS = 1", "test_batches.py test_executor.py"
    ),
    Mutation(
        "a failed batch is run one by one", "batches.py",
        "waiting += [now[len(now) // 2 :], now[: len(now) // 2]]",
        "waiting += [[record] for record in reversed(now)]",
        "test_batches.py",
    ),
    Mutation(
        "out of memory evicts no other model", "batches.py",
        'return self.stage.worker != "reader" and self.models.keep_only(self.stage)',
        "return False",
        "test_batches.py test_executor.py",
    ),
    Mutation(
        "a result of fewer pixels is stored", "batches.py",
        "[record for record in done if record.key not in self.smaller]",
        "done",
        "test_executor.py test_batches.py",
    ),
    Mutation(
        "pixels_lowered is not said", "batches.py", "record.values[PIXELS_LOWERED] = True", "pass",
        "test_batches.py test_executor.py",
    ),
    Mutation(
        "a broken GPU suspects no image", "batches.py",
        "self.journal.count_death([record.key for record in batch], self.stage.name)",
        "pass",
        "test_batches.py test_executor.py",
    ),
    Mutation(
        "a batch that went well ends no series of failures", "batches.py", 'self.streak.note("")', "pass",
        "test_batches.py test_executor.py",
    ),
    Mutation(
        "values that are not finite are kept", "contract.py",
        'return value.dtype.kind != "f" or bool(np.isfinite(value).all())',
        "return True",
        "test_contract.py test_executor.py test_batches.py",
    ),
    Mutation(
        "a misspelt key is ignored", "contract.py",
        'result.keys() - declared.keys() - {"error"}', "set()", "test_contract.py",
    ),
    Mutation(
        "an array is hashed without its shape", "result_cache.py",
        'kind, content = f"{value.dtype.str} {value.shape}", value.tobytes()',
        'kind, content = f"{value.dtype.str}", value.tobytes()',
        "test_result_cache.py",
    ),
    Mutation(
        "a key leaves the optional inputs out", "result_cache.py",
        "for own in (*stage.reads, *stage.optional):", "for own in stage.reads:",
        "test_executor.py test_result_cache.py",
    ),
    Mutation(
        "a path is hashed without what is there", "result_cache.py",
        'is_content = name in ("content", "image_path")', 'is_content = name == "content"', "test_result_cache.py",
    ),
    Mutation(
        "identities count before the rows are saved", "sinks/csv_file.py",
        "return bool(self._replaced)", "return False", "test_refresh.py test_csv_file.py test_stranger.py",
    ),
    Mutation(
        "the journal forgets at once", "crash_journal.py",
        "self._database.write((MARK, rows))\n            yield", "yield", "test_crash_journal.py",
    ),
    Mutation(
        "suspects run with all others", "crash_journal.py",
        "if record.key in self.deaths:\n                held_back", "if False:\n                held_back",
        "test_crash_journal.py test_executor.py",
    ),
    Mutation(
        "many suspects are tried one by one", "crash_journal.py", "FEW_SUSPECTS = 32", "FEW_SUSPECTS = 1",
        "test_crash_journal.py test_executor.py",
    ),
    Mutation(
        "suspects do not wait for others in flight", "crash_journal.py",
        "self._changed.wait_for(lambda: not (self._are_suspects or (are_suspects and self._batches)))", "pass",
        "test_crash_journal.py test_executor.py",
    ),
    Mutation(
        "SQLite does not sync at all", "database.py", "synchronous = NORMAL", "synchronous = OFF", "test_database.py"
    ),
    Mutation(
        "a locked database ends the run", "database.py",
        'if "full" in str(error):', 'if "full" in str(error) or "locked" in str(error):',
        "test_database.py test_failure_policy.py",
    ),
    Mutation(
        "closing does not wait for readers", "database.py",
        "if not self._lock.acquire(timeout=1):", "if self._lock.acquire(timeout=0) and False:", "test_database.py",
    ),
    Mutation("memory is freed without gc.collect", "memory.py", "    gc.collect()\n", "", "test_memory.py"),
    Mutation(
        "torch keeps its freed memory", "memory.py", "torch.cuda.empty_cache()", "pass", "test_memory.py"
    ),
    Mutation(
        "two that run out of memory both wait", "memory.py",
        "if self._reserved_for not in (None, stage):\n                return False",
        "if False:\n                return False",
        "test_memory.py test_executor.py",
    ),
    Mutation(
        "a reservation keeps nobody out", "memory.py", "self._reserved_for = stage\n", "self._reserved_for = None\n",
        "test_memory.py test_executor.py",
    ),
    Mutation(
        "two threads use one model at once", "memory.py", " and stage not in self._in_use)", ")", "test_memory.py"
    ),
    Mutation(
        "models that fit reserve nothing for each other", "memory.py",
        "if not self.holds_all:\n            return 0.0", "return 0.0", "test_memory.py",
    ),
    Mutation(
        "a folder is not synced after a replacement", "sinks/csv_file.py",
        "        sync_folder(path.parent)\n        return changed", "        return changed", "test_csv_file.py",
    ),
    Mutation(
        "rows are appended without an fsync", "sinks/csv_file.py",
        "waiting[self._file.write(waiting) :]\n        os.fsync(self._file.fileno())",
        "waiting[self._file.write(waiting) :]", "test_csv_file.py",
    ),
    Mutation(
        "settings are renamed without an fsync", "settings.py",
        "            os.fsync(file.fileno())\n", "", "test_config.py",
    ),
    Mutation(
        "the stage's version is no setting", "settings.py", '"version": stage.version', '"version": 1',
        "test_config.py test_stranger.py",
    ),
    Mutation(
        "settings of the stage do not count in its key", "settings.py",
        'return json.dumps([own, files], default=str)', 'return json.dumps([own["use"], files], default=str)',
        "test_config.py test_refresh.py",
    ),
    Mutation(
        "one image that comes twice is annotated twice", "pipeline.py",
        "record.key not in taken and record.key not in done", "record.key not in done", "test_pipeline.py",
    ),
    Mutation(
        "the second chunk is not read ahead", "executor.py",
        "read = in_thread(self._read(chunks, pool), 1, stack)", "read = self._read(chunks, pool)", "test_executor.py",
    ),
    Mutation(
        "a stopped run goes on with its next batch", "executor.py",
        "        if self._is_stopping.is_set():\n            raise Stopped", "        pass", "test_executor.py",
    ),
    Mutation(
        "batches do not grow back", "executor.py", "min(2 * proven or most, most)", "min(proven or most, most)",
        "test_executor.py",
    ),
    Mutation(
        "unreadable pictures stop the run", "executor.py",
        'self.reading_streak.note(record.error if SYSTEMIC.match(record.error) else "")',
        "self.reading_streak.note(record.error)",
        "test_executor.py test_failure_policy.py",
    ),
    Mutation(
        "a vanished drive fills the file with errors", "executor.py",
        'self.reading_streak.note(record.error if SYSTEMIC.match(record.error) else "")',
        'self.reading_streak.note("")',
        "test_executor.py test_faults.py",
    ),
    Mutation(
        "an ignored signal is handled", "terminal.py", "if signal.getsignal(number) != signal.SIG_IGN:", "if True:",
        "test_failure_policy.py",
    ),
    Mutation(
        "a closed pipe raises", "terminal.py", "        except OSError:\n            return len(data)",
        "        except NotImplementedError:\n            return len(data)", "test_failure_policy.py",
    ),
]  # fmt: skip


def outcome(mutation: Mutation) -> str:
    """`killed` where the tests fail, `survived` where they pass; anything else is a mistake in this list."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(PROJECT, copy, ignore=LEFT_OUT)
        path = copy / "vec_pipeline" / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            return f"not applied: the old text is there {text.count(mutation.old)} times"
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        tests = [f"tests/{name}" for name in mutation.tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--timeout", "60", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "killed"  # it hangs
    return {0: "survived", 1: "killed"}.get(done.returncode, "killed" if done.returncode < 0 else "tests do not run")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="mutations whose description or file has this word")
    parser.add_argument("--jobs", type=int, default=2, help="at the same time (default: %(default)s)")
    options = parser.parse_args()
    chosen = [each for each in MUTATIONS if options.only in f"{each.what} {each.file}"]
    print("| what is broken | file | tests | outcome |\n|---|---|---|---|")
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutation, found in zip(chosen, pool.map(outcome, chosen), strict=True):
            survivors += found != "killed"
            tests = mutation.tests.replace(" ", ", ")
            print(f"| {mutation.what} | `{mutation.file}` | {tests} | {found} |", flush=True)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} mutations were noticed.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
