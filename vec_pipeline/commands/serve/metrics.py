"""Figures about uploads and searches, in the form that Prometheus reads."""

import time
from collections.abc import Callable
from concurrent.futures import Future

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vec_pipeline.record import Record

BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """Uploads by outcome (ok, error: a row with an error, lost: no row), the seconds they took, how many wait.

    searches: to be counted by what was given: text, like, picture.
    """

    def __init__(self, number_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._uploads = Counter("vec_uploads", "Uploads that were annotated", ["outcome"], registry=self.registry)
        self._seconds = Histogram(
            "vec_upload_seconds", "From an upload to its row", buckets=BUCKETS_S, registry=self.registry
        )
        self.searches = Counter("vec_searches", "Searches that were answered", ["by"], registry=self.registry)
        Gauge("vec_uploads_waiting", "Uploads that wait or are at work", registry=self.registry).set_function(
            number_waiting
        )

    def watch(self, future: "Future[Record]") -> None:
        """Count what becomes of an upload."""
        start_s = time.monotonic()

        def note(done: "Future[Record]") -> None:
            if done.cancelled() or done.exception():
                self._uploads.labels("lost").inc()
                return
            self._uploads.labels("error" if done.result().error else "ok").inc()
            self._seconds.observe(time.monotonic() - start_s)

        future.add_done_callback(note)
