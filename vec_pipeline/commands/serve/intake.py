"""Uploads from arrival to row: a file and a place in the queue, both given up where there will be no row."""

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from vec_pipeline.commands.serve.annotator import Annotator, Upload
from vec_pipeline.commands.serve.metrics import Metrics
from vec_pipeline.commands.serve.rows import Rows
from vec_pipeline.commands.serve.uploads import Uploads, id_of
from vec_pipeline.record import Record
from vec_pipeline.sources import content_of

MOST_FAILURES = 256  # of which the reason is kept until it is asked for


class Intake:
    """Takes uploads in, and knows what has become of them, by their ids.

    A request that waits for an upload is counted. When the last one leaves, the upload gives its place up, unless
    somebody was told to ask for its id later.
    """

    def __init__(self, annotator: Annotator, uploads: Uploads, rows: Rows, metrics: Metrics) -> None:
        self._annotator, self._uploads, self._rows, self._metrics = annotator, uploads, rows, metrics
        self._at_work: dict[str, Upload] = {}
        self._awaited: Counter[str] = Counter()  # requests
        self._promised: set[str] = set()  # those whose ids were given to who did not wait
        self._failures: OrderedDict[str, str] = OrderedDict()
        self._changing = threading.RLock()  # of files too: one must not go while the same picture comes again

    def take(self, content: bytes, wishes: str, way: str, without: frozenset[str]) -> str:
        """Keep a picture and put it into the queue, unless its row is there; one more request waits. Returns its id.

        wishes: what is asked of it. way: of the annotator. without: names of the stages that are not to run.

        Raises NotAPicture, OSError where it cannot be kept, Full, UserError where nothing more can be annotated.
        """
        path = self._uploads.path_for(content, wishes)
        name = id_of(path)
        with self._uploads.written(content) as new, self._changing:
            self._uploads.put(new, path)
            record = Record(str(path), {"content": content_of(str(path))}, without=without)
            try:
                upload = self._annotator.submit(record, way)
            except BaseException:
                self._drop_if_useless(path)
                raise
            self._failures.pop(name, None)
            self._awaited[name] += 1
            if upload and self._at_work.get(name) is not upload:
                self._at_work[name] = upload
                upload.future.add_done_callback(lambda future: self._note_end(name, path, future))
                self._metrics.watch(upload.future)
        return name

    def release(self, names: Iterable[str], *, has_left: bool) -> None:
        """One request less waits for each of these.

        has_left: its client has gone; otherwise it knows the ids, and may ask for them.
        """
        with self._changing:
            for name in names:
                self._awaited[name] -= 1
                if not self._awaited[name]:
                    del self._awaited[name]
                upload = self._at_work.get(name)
                if not has_left and upload:
                    self._promised.add(name)
                elif upload and name not in self._awaited and name not in self._promised:
                    self._annotator.give_up(upload.record.key)

    def futures(self, names: Iterable[str]) -> list["Future[Record]"]:
        """Of those that have no row yet."""
        uploads = map(self._at_work.get, names)
        return [upload.future for upload in uploads if upload]

    def state(self, name: str) -> str:
        """`waiting`, `running`, or empty for what is not at work."""
        upload = self._at_work.get(name)
        return ("running" if upload.is_running else "waiting") if upload else ""

    def ahead(self, name: str) -> int:
        """Uploads that came before one and have no row yet."""
        upload = self._at_work.get(name)
        return self._annotator.number_before(upload.record.key) if upload else 0

    def failure(self, name: str) -> str:
        """Why there is no row for an upload; empty where that is not known."""
        return self._failures.get(name, "")

    def texts_at_work(self) -> set[str]:
        """The texts among the values of uploads that have no row yet, such as the paths of files made for them."""
        with self._changing:
            values = [list(upload.record.values.values()) for upload in self._at_work.values()]  # stages add to them
        return {value for each in values for value in each if isinstance(value, str)}

    def forget(self, names: Iterable[str]) -> None:
        """Delete pictures whose rows are gone."""
        with self._changing:
            for path in filter(None, map(self._uploads.path, names)):
                self._drop_if_useless(path)

    def _note_end(self, name: str, path: Path, future: "Future[Record]") -> None:
        error = None if future.cancelled() else future.exception()
        with self._changing:
            if name in self._at_work and self._at_work[name].future is future:
                del self._at_work[name]
                self._promised.discard(name)
            if error:
                self._failures[name] = str(error)
                while len(self._failures) > MOST_FAILURES:
                    self._failures.popitem(last=False)
            self._drop_if_useless(path)

    def _drop_if_useless(self, path: Path) -> None:
        """Delete the file of a picture that has no row and is not at work."""
        if not self._annotator.is_at_work(str(path)) and not self._rows.has(str(path)):
            with contextlib.suppress(OSError):
                path.unlink()
