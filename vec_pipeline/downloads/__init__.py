"""Downloads: the content of records that lies elsewhere, fetched ahead of the stages, many at once."""

import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vec_pipeline.downloads.statistics import Statistics
from vec_pipeline.record import Content, Record, SourceOptions, Values

if TYPE_CHECKING:
    from vec_pipeline.downloads.ahead import Ahead

__all__ = ["DownloadError", "Downloads", "Fetched", "Statistics", "is_remote", "to_fetch"]


class Fetched(NamedTuple):
    """What a `fetch` returns.

    values: columns to add to the record, such as http_status.
    """

    content: Content
    values: Values


class DownloadError(Exception):
    """Why the content of one record cannot be had. The message names no address: it may hold a password.

    kind: Timeout, TooLarge, HTTP404 and the like: the statistics count by it.
    values: columns to add to the record in spite of the failure, such as http_status.
    may_pass: another try may succeed.
    """

    def __init__(self, kind: str, message: str, values: Values | None = None, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.values: Values = values or {}
        self.may_pass = may_pass


class Downloads:
    """Fetches the content of records, as `options` says.

    A content is remote if it has a method `async def fetch(client: Client) -> Fetched`.

    temporary: a folder for what `options.store` does not keep. It is emptied now, and removed by `close`.
    """

    def __init__(self, options: SourceOptions, temporary: Path) -> None:
        self.statistics = Statistics()
        self._options = options
        self._temporary = temporary
        self._ahead: Ahead | None = None  # since a record was remote
        shutil.rmtree(temporary, ignore_errors=True)

    def ahead(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records in the order in which their content arrives; those that need no download at once.

        A record whose content cannot be had has an error instead. From the first record on whose content is remote,
        `records` is read in a thread of its own.

        Raises what `records` raises, after all that came before it, and UserError where nothing can be saved.
        """
        iterator = iter(records)
        for record in iterator:
            if is_remote(record):
                yield from self._fetched(chain([record], iterator))
                return
            yield record

    def ready(self) -> int:
        """How many records have arrived and were not taken yet."""
        return len(self._ahead.arrived) if self._ahead else 0

    @property
    def is_active(self) -> bool:
        """Whether records come in the order in which they arrive, since one of them was remote."""
        return self._ahead is not None

    def close(self) -> None:
        """End what is in progress, within a second, and remove the temporary files."""
        if self._ahead:
            self._ahead.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _fetched(self, records: Iterator[Record]) -> Iterator[Record]:
        from vec_pipeline.downloads.ahead import Ahead
        from vec_pipeline.downloads.client import Client

        def client() -> Client:
            return Client(self._options, self._temporary, self.statistics)

        self._ahead = Ahead(records, client, self.statistics)
        yield from self._ahead.run()


def is_remote(record: Record) -> bool:
    """Whether something of the record is still to be fetched."""
    return not record.error and bool(to_fetch(record))


def to_fetch(record: Record) -> list[str]:
    """Names of the values that are still to be fetched, in their order."""
    return [name for name, value in record.values.items() if hasattr(value, "fetch")]
