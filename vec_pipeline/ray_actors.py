"""Runs the children of a run as actors of a Ray cluster, in place of processes of this machine, see `children`.

An actor serves its run as a child process does, over two connections of its own; Ray finds the place for it, and tells
when it has died. Nothing goes through Ray's object store.
"""

import contextlib
import importlib.util
import itertools
import logging
import logging.handlers
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vec_pipeline import device
from vec_pipeline.child import Work, serve
from vec_pipeline.children import MOST_FAILURES, Child, Children, Chunk, Event, Pulled, portable, with_contents
from vec_pipeline.crash_journal import CrashJournal
from vec_pipeline.database import Database
from vec_pipeline.memory import LoadError
from vec_pipeline.record import Record, Stage, UserError
from vec_pipeline.result_cache import ResultCache
from vec_pipeline.terminal import SIGNALS

CONNECT_S = 10.0  # to the head node
PLACE_S = 20.0  # that an actor waits for a place before that is said
CLOSE_S = 2.0  # for what follows an actor to end
DEATH_S = 90.0  # between the end of a connection and Ray's word, which comes after 30 s at most by default
OBJECTS_BYTES = 80_000_000  # of the object store of a Ray of one's own, near the least that Ray takes

logger = logging.getLogger("vec_pipeline")


@dataclass(frozen=True)
class Cluster:
    """What a run has of a cluster.

    names: of the actors at the start.
    device: of each, as an actor's own process names it.
    resources: that each asks the cluster for.
    grows: whether machines that join get actors.
    is_shared: whether others may have what an actor waits for.
    """

    names: tuple[str, ...]
    device: str
    resources: Mapping[str, float]
    grows: bool
    is_shared: bool

    @property
    def unit(self) -> str:
        return "GPU" if "num_gpus" in self.resources else "CPU"


def check(address: str, devices: str) -> None:
    """Find what is wrong with the options without starting Ray. Raises UserError."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs ray: pip install 'vec-pipeline[ray]'")
    number_of_cpus(devices)
    host, _, port = address.rpartition(":")
    if address not in ("", "auto") and (not host or "/" in host or not port.isdecimal()):
        raise UserError(f"--address {address}: write auto on a machine of the cluster, or the HOST:PORT of its head")
    reachable(address)


def number_of_cpus(devices: str) -> int:
    """Actors on CPUs; 0 for all GPUs. Raises UserError for devices that the cluster, and not the run, chooses."""
    if devices in ("", "all"):
        return 0
    with contextlib.suppress(ValueError):
        names = device.names(devices)
        if all(name.startswith("cpu") for name in names):
            return len(names)
    raise UserError(f"devices: {devices!r}: with --engine ray, name all (the cluster's GPUs), or cpu:2 for two CPUs")


@contextlib.contextmanager
def connected(address: str, devices: str) -> Iterator[Cluster]:
    """Join a cluster, or start a Ray of this machine alone where the address is empty; leave it, or stop it, after.

    address, devices: as `check` has found them right.

    Raises UserError where there is no such cluster, or no GPU in it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else each actor on a CPU has a warning of it
    import ray

    cpus = number_of_cpus(devices)
    of_this_machine = {
        "address": "local", "num_cpus": cpus or None, "include_dashboard": False, "object_store_memory": OBJECTS_BYTES
    }  # fmt: skip
    options = {"address": reachable(address)} if address else of_this_machine
    ray._private.worker._worker_logs_enabled = False  # what `log_to_driver` leaves: its pages about each death
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto" and not os.environ.get("RAY_ADDRESS"):
            raise UserError(
                "no Ray cluster runs on this machine: start one with `ray start --head`, or leave --address out"
            ) from None
        raise UserError(
            f"Ray: {first_line(error)}: if it was started with tokens, set RAY_AUTH_MODE here as well"
        ) from None
    finally:
        for number, handler in handlers.items():  # Ray has set its own
            signal.signal(number, handler)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        if not (cpus or gpus):
            raise UserError("the cluster has no GPU: start a machine that has one, or set devices=cpu:2 for two CPUs")
        names = tuple(f"actor {number + 1}" for number in range(cpus or gpus))
        if cpus:
            yield Cluster(names, "cpu:0", {"num_cpus": 1}, grows=False, is_shared=bool(address))
        else:
            resources = {"num_gpus": 1, "num_cpus": 0}
            yield Cluster(names, "cuda:0", resources, grows=bool(address), is_shared=bool(address))
    finally:
        ray.shutdown()


def reachable(address: str) -> str:
    """The address, which Ray would try for minutes if nothing answered there. Raises UserError."""
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"no Ray answers at {address} ({reason}): check --address, or run ray start") from None
    return address


def prepare(stages: Sequence[Stage], shared: Sequence[Path]) -> None:
    """What an actor does first: see to it that its machine has the models, and the files that all are to share.

    Raises LoadError, which another machine may not.
    """
    try:
        for path in shared:
            if not path.exists():
                raise UserError(f"{path} is not there: name a path that all machines of the cluster share")
        for stage in stages:
            stage.fetch()
    except UserError as error:
        raise LoadError(f"{socket.gethostname()}: {error}") from None


class Actors(Children):
    """Children in a cluster, which has an eye on machines that join: one actor more than there are GPUs waits there.

    An autoscaler takes that as a reason to start a machine.
    """

    def __init__(self, cluster: Cluster, work: Work, results: ResultCache, journal: CrashJournal) -> None:
        self._cluster = cluster
        self._numbers = itertools.count(len(cluster.names) + 1)
        self._spare: Child | None = None
        super().__init__(cluster.names, work, results, journal)

    @property
    def at_work(self) -> list[str]:
        """Not each by its name: there may be hundreds."""
        number = sum(bool(child.chunks) for child in self._children)
        return [f"{number} actors"] if number else []

    def _child(self, name: str) -> Child:
        return ActorChild(name, self._cluster, self._work, self._databases, self._events)

    def _act_on(self, event: Event, source: Pulled) -> Chunk | None:
        if event.kind == "waits":
            if event.child is not self._spare and self._cluster.is_shared:  # else Ray has all that it was told to have
                others = ": the others go on" if any(child.chunks for child in self._children) else ""
                print(f"{event.value} waits for a free {self._cluster.unit} of the cluster{others}", flush=True)
            return None
        finished = super()._act_on(event, source)
        has_begun = event.kind == "next" and (self._spare is None or event.child is self._spare)
        is_sound = max(self._failures.values(), default=0) < MOST_FAILURES  # else the spare gets the GPU that failed
        if has_begun and self._cluster.grows and is_sound and not source.is_over:
            self._spare = self._child(f"actor {next(self._numbers)}")
            self._children.append(self._spare)
        return finished


class ActorChild(Child):
    """The run's side of an actor, from when it is asked for to its death.

    node: that it is on; empty while it waits for a place.
    """

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        work: Work,
        databases: Mapping[str, Database],
        events: SimpleQueue[Event],
    ) -> None:
        import ray

        super().__init__(name, databases, events)
        self.node = ""
        self._device, self._reason = cluster.device, ""
        self._links: list[Connection[Any, Any]] = []
        self._actor: Any = ray.remote(Actor).options(**cluster.resources).remote()
        self._follower = threading.Thread(target=self._follow, args=(work,), name=name, daemon=True)
        self._follower.start()

    def sendable(self, record: Record) -> Record:
        return with_contents(record, portable)  # a temporary file of this machine is read here

    def cause_of_death(self) -> str:
        return self._reason

    def close(self) -> None:
        import ray

        ray.kill(self._actor)
        self._follower.join(CLOSE_S)

    def _follow(self, work: Work) -> None:
        """The thread that waits for the actor to have a place, then for its death."""
        import ray

        try:
            key = secrets.token_bytes(32)
            place = self._actor.listen.remote(key, sys.path, os.getcwd())
            if not ray.wait([place], timeout=PLACE_S)[0]:
                self._events.put(Event("waits", self, self.name))
            host, port, self.node = ray.get(place)
            logger.info("%s is on %s", self.name, host)
            level = logging.getLogger("vec_pipeline").getEffectiveLevel()
            served = self._actor.serve.remote(
                self._device, replace(work, cpu_threads=cores_for(self._device, self.node)), level
            )
            self._links = [Client((host, port), authkey=key) for _ in range(3)]
            *to_child, log = self._links
            self._start(self._log, log)
            self._connect(*to_child)
            ray.get(served)
        except BaseException as error:  # of Ray, which ends threads by SystemExit, of the network, and of the actor
            self._reason = reason_of(error)
            self.died_with_machine = not node_of(self.node).get("Alive", True)
        for link in self._links:
            hang_up(link)
        self._events.put(Event("died", self))

    def _hung_up(self) -> None:
        """Let Ray tell why; an actor of which it has nothing to tell has lost its connection alone."""
        import ray

        self._follower.join(DEATH_S)
        ray.kill(self._actor)

    def _log(self, connection: "Connection[Any, Any]") -> None:
        """The thread that writes what the actor logs into the log of the run."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                record = connection.recv()
                record.msg = f"{self.name}: {record.msg}"
                logging.getLogger(record.name).handle(record)


class Actor:
    """What Ray runs on a machine of the cluster."""

    def listen(self, key: bytes, paths: list[str], folder: str) -> tuple[str, int, str]:
        """Be ready for the run's connections; return host and port, and which node this is.

        paths, folder: where the run finds modules, and its current folder: this machine may have them too.
        """
        import ray

        sys.path += [path for path in paths if path not in sys.path]
        with contextlib.suppress(OSError):
            os.chdir(folder)
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._listener = Listener((host, 0), backlog=3, authkey=key)
        return host, self._listener.address[1], ray.get_runtime_context().get_node_id()

    def serve(self, name: str, work: Work, level: int) -> None:
        """Serve the run to its end."""
        connections = [self._listener.accept() for _ in range(3)]
        self._listener.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which Ray has blocked, and which stops a child
        *of_child, log = connections
        logging.getLogger().addHandler(ToRun(log))  # type: ignore[arg-type]
        logging.getLogger("vec_pipeline").setLevel(level)
        logging.raiseExceptions = False  # the run may have ended
        serve(name, work, *of_child)


class ToRun(logging.handlers.QueueHandler):
    """Sends what is logged to the run."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)  # type: ignore[attr-defined]


def cores_for(device: str, node: str) -> int:
    """CPU cores of an actor: one for one on a CPU; with a GPU, its share of those of its node."""
    resources: dict[str, float] = node_of(node).get("Resources", {})
    gpus = int(resources.get("GPU", 0))
    return max(1, int(resources.get("CPU", 0)) // gpus) if gpus and device != "cpu:0" else 1


def node_of(name: str) -> dict[str, Any]:
    """What Ray knows of a node; nothing where it has none of that name."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return next((each for each in nodes if each["NodeID"] == name), {})


def reason_of(error: BaseException) -> str:
    """The sentence of an error that says why; those of Ray have many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith("The actor is dead because ")), "")
    if why:
        return why.removeprefix("The actor is dead because ").partition(". ")[0].rstrip(".")
    return lines[-1] if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def hang_up(connection: "Connection[Any, Any]") -> None:
    """End a connection whose other end may have vanished, and on which another thread may be waiting."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)
