"""Children in a Ray cluster of two nodes on this machine: rows as of one process, and what deaths of nodes leave."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests import child_stages
from tests.child_stages import Read, Tell, names_of, rows_of, work_of
from tests.conftest import EXAMPLES, PROJECT, Run, command, run_worker
from tests.fakes import record_of, records
from tests.test_promises import assert_same_rows
from vec_pipeline import checks, children, load_annotations, ray_actors
from vec_pipeline.children import Child, Event
from vec_pipeline.commands.run import fetched
from vec_pipeline.commands.run.work import shared_paths
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.downloads.temporary import InMemory, temporary_content
from vec_pipeline.memory import LoadError
from vec_pipeline.pipeline import chunks, run
from vec_pipeline.ray_actors import Actors, Cluster, check, connected, hang_up, prepare, reason_of
from vec_pipeline.record import Record, UserError
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.terminal import SIGNALS

pytestmark = pytest.mark.timeout(300)
Make = Callable[..., Actors]
HEALTH = {  # a node that is gone is known to be gone within seconds
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster()
    add_node(cluster, num_cpus=0, _system_config=HEALTH)  # the first is the head
    for _ in range(2):
        add_node(cluster, num_cpus=1)
    yield cluster
    cluster.shutdown()


def add_node(cluster: Any, **options: Any) -> Any:
    """Add a node; Ray's handlers of signals are taken off again."""
    before = [signal.getsignal(number) for number in SIGNALS]
    node = cluster.add_node(**options)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    return node


@pytest.fixture(scope="module")
def joined(nodes: Any) -> Iterator[Cluster]:
    before = [signal.getsignal(number) for number in SIGNALS]
    with connected(nodes.address, "cpu:2") as cluster:
        after = [signal.getsignal(number) for number in SIGNALS]
        assert after == before, "signals are the run's"
        yield cluster


@pytest.fixture
def make(joined: Cluster, tmp_path: Path) -> Iterator[Make]:
    """Make the actors of a run; each call is a new run over the same result cache and crash journal."""
    made: list[Any] = []

    def actors(
        *, cluster: Cluster = joined, begin: Callable[[], None] = child_stages.begin, sleep_s: float = 0.0
    ) -> Actors:
        results = ResultCache(tmp_path / "cache.sqlite", child_stages.no_fingerprint_of_device)
        journal = CrashJournal(tmp_path / "journal.sqlite")
        work = work_of(Tell(sleep_s=sleep_s, batch_size=4), begin=begin)
        made.extend([Actors(cluster, work, results, journal), results, journal])
        return made[-3]

    yield actors
    for each in made:
        each.close()


def deaths_noted(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each death that will be noted, whether it was that of a machine."""
    noted: list[bool] = []
    note = actors._journal.note_death

    def noting(keys: Sequence[str], *, of_machine: bool) -> set[str]:
        noted.append(of_machine)
        return note(keys, of_machine=of_machine)

    monkeypatch.setattr(actors._journal, "note_death", noting)
    return noted


# --- work


def test_every_image_comes_out_once_and_both_nodes_work(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With content in a file of this machine alone, a row that fails, and the log of the actors in that of the run."""
    text = "large " * 20_000
    content = temporary_content(text.encode(), "version", folder=tmp_path / "downloads")
    found = [*records(*names_of(60), "refused"), Record("file", {"content": content})]
    with caplog.at_level(logging.INFO, logger="vec_pipeline"):
        actors = make(sleep_s=0.01)
        rows = rows_of(actors, found, by_all=True)
    assert rows.pop("file").values["text"] == f"told {text}"
    assert rows.pop("refused").error == "tell: ValueError: no such picture"
    assert {key: row.values["text"] for key, row in rows.items()} == {key: f"told {key}" for key in names_of(60)}
    assert not any(row.error for row in rows.values())
    pids = {row.values["pid"] for row in rows.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {message.split(":")[0] for message in caplog.messages if "a batch of" in message} == {"actor 1", "actor 2"}
    actors.close()  # the others need their places
    again = rows_of(make(), [record_of(name, name) for name in names_of(9)])
    assert {row.values["pid"] for row in again.values()} <= pids, "what is in the result cache is not computed again"


def test_the_image_that_kills_is_found_while_the_others_go_on(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = names_of(30)
    found[10] = "kill"
    actors = make(sleep_s=0.001)
    rows = rows_of(actors, records(*found), size=5)
    assert set(rows) == set(found)
    assert rows.pop("kill").error.startswith("tell: ProcessDied: ")
    assert not any(row.error for row in rows.values())
    assert "left out" not in capsys.readouterr().out


def test_an_actor_that_is_killed_costs_no_row(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    actors = make(sleep_s=0.02)
    noted = deaths_noted(actors, monkeypatch)
    came: dict[str, Record] = {}
    for number, chunk in enumerate(actors(chunks(records(*names_of(80)), lambda: 4))):
        came |= {record.key: record for record in chunk}
        if number == 2:
            os.kill(chunk[0].values["pid"], signal.SIGKILL)
    assert set(came) == set(names_of(80))
    assert not any(record.error for record in came.values())
    assert "has ended (its worker process has died)" in caplog.text
    assert noted == [False]
    assert capsys.readouterr().out == "", "Ray would print a page"


def test_an_actor_that_hangs_after_its_connection_is_lost_is_replaced(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray has nothing to tell of it."""
    monkeypatch.setattr(ray_actors, "DEATH_S", 0.5)
    actors = make(sleep_s=0.02)
    came: set[str] = set()
    stopped = 0
    for chunk in actors(chunks(records(*names_of(60)), lambda: 4)):
        came |= {record.key for record in chunk}
        if not stopped:
            stopped = int(chunk[0].values["pid"])
            os.kill(stopped, signal.SIGSTOP)
            child = next(child for child in actors._children if child.figures.images)
            hang_up(child._work)  # type: ignore[arg-type]
    with suppress(ProcessLookupError):  # Ray has killed it
        os.kill(stopped, signal.SIGKILL)
    assert came == set(names_of(60))
    assert actors._past


def test_a_node_that_vanishes_costs_no_row_and_is_held_against_no_image(
    nodes: Any, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is its actor given up: it waits for another node, and goes on there."""
    actors = make(sleep_s=0.05)
    noted = deaths_noted(actors, monkeypatch)
    came: dict[str, Record] = {}
    victim = None
    for chunk in actors(chunks(records(*names_of(200)), lambda: 4)):
        came |= {record.key: record for record in chunk}
        if victim is None and all(child.figures.images for child in actors._children):
            victim = next(node for node in nodes.worker_nodes if node.node_id == actors._children[1].node)
            nodes.remove_node(victim, allow_graceful=False)
        if victim and actors._past and len(nodes.worker_nodes) == 1:
            add_node(nodes, num_cpus=1)
    assert set(came) == set(names_of(200))
    assert not any(record.error for record in came.values())
    assert noted == [True]
    assert len({record.values["pid"] for record in came.values()}) >= 2
    assert not actors._journal.deaths
    assert "left out" not in capsys.readouterr().out


def test_an_interrupt_hands_over_what_is_complete(joined: Cluster, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And waits for no actor that has no place."""
    monkeypatch.setattr(children, "STOP_S", 60.0)
    actors = make(cluster=replace(joined, names=("actor 1", "actor 2", "actor 3")), sleep_s=0.05)
    saved: list[Record] = []
    done: set[str] = set()

    def interrupt() -> None:
        while len(saved) < 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    def save(chunk: list[Record]) -> None:
        saved.extend(chunk)
        done.update(record.key for record in chunk)

    threading.Thread(target=interrupt, daemon=True).start()
    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(records(*names_of(400)), actors, done, save, lambda: 4)
    assert time.monotonic() - start_s < 50, "the actors have answered"
    assert 8 <= len(saved) < 400
    assert all(record.values["text"] == f"told {record.key}" for record in saved), "no row is saved that is not whole"


def test_a_machine_that_joins_is_given_work(nodes: Any, make: Make) -> None:
    """One actor more than there are GPUs waits for a place, and does not keep the run from its end."""
    first = add_node(nodes, num_cpus=0, num_gpus=1)
    gpus = Cluster(("actor 1",), "cuda:0", {"num_gpus": 1, "num_cpus": 0}, grows=True, is_shared=True)
    actors = make(cluster=gpus, sleep_s=0.05)
    pids: set[int] = set()
    came: set[str] = set()
    second = None
    for chunk in actors(chunks(records(*names_of(300)), lambda: 4)):
        came |= {record.key for record in chunk}
        pids |= {record.values["pid"] for record in chunk}
        if second is None:
            second = add_node(nodes, num_cpus=0, num_gpus=1)
    assert came == set(names_of(300))
    assert len(pids) == 2
    assert [child.name for child in actors._children if not child.node] == ["actor 3"]  # type: ignore[attr-defined]
    actors.close()
    for node in (first, second):
        nodes.remove_node(node)


def test_actors_without_a_place_are_told_of_and_the_others_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_actors, "PLACE_S", 0.5)
    three = Cluster(("actor 1", "actor 2", "actor 3"), "cpu:0", {"num_cpus": 1}, grows=False, is_shared=True)
    rows = rows_of(make(cluster=three, sleep_s=0.05), records(*names_of(90)))
    assert set(rows) == set(names_of(90))
    assert "waits for a free CPU of the cluster" in capsys.readouterr().out


def test_a_machine_that_lacks_what_all_share_says_so(make: Make, tmp_path: Path) -> None:
    begin = partial(prepare, (), [tmp_path, tmp_path / "photos"])
    with pytest.raises(UserError, match=r"no device is left: actor \d: .*photos is not there: name a path that all"):
        rows_of(make(begin=begin), records("a", "b"))


def test_a_machine_without_a_model_says_so() -> None:
    class Absent(Tell):
        def fetch(self) -> None:
            raise UserError("me/model: the hub has no such model")

    with pytest.raises(LoadError, match=f"{socket.gethostname()}: me/model: the hub has no such model"):
        prepare([Absent()], [])


def test_an_actor_finds_the_modules_and_files_of_the_run(
    joined: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    actor = ray_actors.Actor()
    actor.listen(b"key", [sys.path[0], "/modules"], str(tmp_path / "folder"))
    actor.listen(b"key", [], "/nowhere")
    assert sys.path.count("/modules") == 1
    assert Path.cwd() == tmp_path / "folder"


def test_a_temporary_file_of_this_machine_is_sent(tmp_path: Path) -> None:
    content = temporary_content(b"x" * 100_000, "version", folder=tmp_path)
    sent = ray_actors.ActorChild.sendable(None, Record("a", {"content": content}))  # type: ignore[arg-type]
    assert sent.values["content"] == InMemory(b"x" * 100_000, "version", "")


def test_cores_are_shared_by_the_gpus_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"Resources": {"CPU": 16.0, "GPU": 4.0}}
    monkeypatch.setattr(ray_actors, "node_of", lambda name: found)
    assert ray_actors.cores_for("cuda:0", "node") == 4
    assert ray_actors.cores_for("cpu:0", "node") == 1
    found = {"Resources": {"CPU": 2.0, "GPU": 4.0}}
    assert ray_actors.cores_for("cuda:0", "node") == 1


def test_one_actor_waits_for_a_machine_while_that_makes_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Actors, "_child", lambda self, name: Child(name, {}, self._events))
    source: Any = SimpleNamespace(is_over=False)

    def actors_of(*, grows: bool = True) -> Actors:
        gpus = Cluster(("actor 1", "actor 2"), "cuda:0", {"num_gpus": 1}, grows=grows, is_shared=grows)
        return Actors(gpus, None, ResultCache(None, str), CrashJournal(None))  # type: ignore[arg-type]

    def names_after(actors: Actors, *numbers: int) -> list[str]:
        for number in numbers:
            actors._act_on(Event("next", actors._children[number]), source)
        return [child.name for child in actors._children[2:]]

    actors = actors_of()
    assert names_after(actors, 0, 1, 0) == ["actor 3"]
    assert names_after(actors, 2, 0) == ["actor 3", "actor 4"]
    actors._act_on(Event("waits", actors._children[3], "actor 4"), source)
    assert capsys.readouterr().out == ""
    actors._act_on(Event("waits", actors._children[0], "actor 1"), source)
    assert capsys.readouterr().out == "actor 1 waits for a free GPU of the cluster\n"
    assert names_after(actors_of(grows=False), 0) == []
    actors = actors_of()
    actors._failures["actor 2"] = 3
    assert names_after(actors, 0) == [], "it would be given the GPU that failed"
    source.is_over = True
    assert names_after(actors_of(), 0) == []


# --- the command line


def test_memory_of_other_machines_is_not_judged_by_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stages: object) -> None:
        raise UserError("17 GB are needed")

    monkeypatch.setattr(checks, "check_memory", refuse)
    assert fetched([Read()], "ray") == (Read(),)
    with pytest.raises(UserError, match="17 GB"):
        fetched([Read()], None)


def test_what_machines_share_is_something_of_each_folder_and_the_csv_where_files_lie_beside(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    photo.touch()
    writes_files = SimpleNamespace(columns={"audio": "file"})

    def job(*stages: object, store: Path | None = None) -> Any:
        config = SimpleNamespace(store_path=store, output=tmp_path / "a.csv")
        sources = [str(photo.parent), str(photo), "https://host/b.jpg"]
        return SimpleNamespace(options=SimpleNamespace(source=sources), config=config, stages=stages)

    assert shared_paths(job(Tell())) == [photo, photo]
    assert shared_paths(job(Tell(), writes_files)) == [photo, photo, tmp_path / "a.csv"]
    assert shared_paths(job(store=tmp_path)) == [photo, photo, tmp_path / "a.csv"]


def test_a_run_that_is_killed_is_resumed_to_the_rows_of_one_process(
    nodes: Any, example_run: tuple[Run, Path], tmp_path: Path
) -> None:
    output = tmp_path / "annotations.csv"
    arguments = (EXAMPLES, "--output", output, "--engine", "ray", "--address", nodes.address)
    of_cpus = ("--set", "devices=cpu:1", "--set", "chunk_size=2")
    with subprocess.Popen(command(*arguments, *of_cpus), stdout=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 80
        while time.monotonic() < deadline_s and not (output.exists() and output.read_bytes().count(b"\n") > 3):
            time.sleep(0.05)
        process.kill()
    before = len(load_annotations(output))
    assert 0 < before < len(load_annotations(example_run[1]))
    again = run_worker(*arguments, *of_cpus)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{before} done" in again.stdout
    assert again.stderr.count("\n") <= again.stderr.count("images/s") + 1, "Ray has nothing to say on the terminal"
    assert_same_rows(load_annotations(output), load_annotations(example_run[1]))
    done = run_worker(*arguments, "--retry-errors")
    assert "0 to do" in done.stdout, "nothing is asked of the cluster"


def test_a_cluster_without_a_gpu_is_said_before_the_first_picture(nodes: Any, tmp_path: Path) -> None:
    run = run_worker(EXAMPLES, "--output", tmp_path / "a.csv", "--engine", "ray", "--address", nodes.address)
    assert run.returncode == 2
    assert "the cluster has no GPU: start a machine that has one, or set devices=cpu:2 for two CPUs" in run.stderr


@pytest.mark.parametrize(
    ("address", "devices", "said"),
    [
        ("", "cuda:0,cuda:2", "with --engine ray, name all (the cluster's GPUs), or cpu:2 for two CPUs"),
        ("ray://head:10001", "all", "write auto on a machine of the cluster, or the HOST:PORT of its head"),
        ("head", "all", "write auto on a machine of the cluster, or the HOST:PORT of its head"),
        ("127.0.0.1:1", "all", "no Ray answers at 127.0.0.1:1 (Connection refused): check --address"),
    ],
)
def test_options_are_checked_before_ray_starts(address: str, devices: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        check(address, devices)
    assert said in str(raised.value)


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vec-pipeline\[ray\]'"):
        check("", "all")


def test_an_address_without_the_engine_is_refused(tmp_path: Path) -> None:
    run = run_worker(EXAMPLES, "--output", tmp_path / "a.csv", "--address", "auto")
    assert run.returncode == 2
    assert "add --engine ray" in run.stderr


# --- what a death is held against


def test_the_death_of_a_machine_counts_against_an_image_that_was_alone(tmp_path: Path) -> None:
    journal = CrashJournal(tmp_path / "journal.sqlite")

    def die(*names: str, of_machine: bool = True) -> None:
        with journal.in_flight(names, "describe"):
            journal.note_death(names, of_machine=of_machine)

    die("a", "b", "c")
    assert journal.deaths == {"a": 0, "b": 0, "c": 0}
    assert journal.fitting(records("a", "b"), 32) == records("a"), "they are tried alone"
    die("a")
    assert not journal.fatal_stage("a")
    die("a")
    assert journal.fatal_stage("a") == "describe"
    die("b", of_machine=False)
    assert not journal.fatal_stage("b")
    journal.close()


def test_the_reason_of_a_death_is_one_sentence() -> None:
    text = "The actor died unexpectedly.\n\tpid: 3\nThe actor is dead because its node has died. Node Id: 4\n"
    assert reason_of(RuntimeError(text)) == "its node has died"
    assert reason_of(RuntimeError("ray::Actor\nModuleNotFoundError: No module named 'vec_pipeline'\n")) == (
        "ModuleNotFoundError: No module named 'vec_pipeline'"
    )
    assert reason_of(EOFError()) == "EOFError"


def test_the_cluster_file_of_the_docs_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((PROJECT / "docs/ray/aws-g5.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}


def test_who_waits_for_a_machine_that_has_vanished_is_let_go() -> None:
    """As the run does where it hands a chunk to an actor whose machine is gone: nobody reads, and nobody refuses."""
    own, other = Pipe()
    failures: list[BaseException] = []

    def give() -> None:
        try:
            own.send(b"x" * 50_000_000)
        except OSError as error:
            failures.append(error)

    giver = threading.Thread(target=give, daemon=True)
    giver.start()
    giver.join(0.2)
    assert giver.is_alive()
    hang_up(own)
    giver.join(10)
    assert failures
    other.close()
