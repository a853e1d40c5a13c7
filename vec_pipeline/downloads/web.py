"""Pictures at addresses of the web: their records, and their content until it is fetched."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vec_pipeline.downloads import DownloadError, Fetched
from vec_pipeline.downloads.addresses import key_of
from vec_pipeline.downloads.statistics import Statistics
from vec_pipeline.downloads.store import stored
from vec_pipeline.record import Record, SourceOptions

if TYPE_CHECKING:
    from vec_pipeline.downloads.client import Client

WEB_COLUMNS = {"source_url": "text", "http_status": "number"}


def web_record(url: str, options: SourceOptions) -> Record:
    """The record of the picture at an address. Its key holds no credentials."""
    key = key_of(url)
    return Record(key, {"content": WebPicture(url, options), "source_url": key})


@dataclass(frozen=True, slots=True)
class WebPicture:
    """Content at an address, which may be in the store already."""

    url: str = field(repr=False)  # it may hold a password
    options: SourceOptions = field(repr=False)

    @property
    def link(self) -> str:
        return key_of(self.url)

    async def fetch(self, client: "Client") -> Fetched:
        return await client.get(self.url)

    def read(self) -> bytes:
        """From the store, or else by one download, which the store keeps. Raises OSError."""
        if found := stored(self.options.store, self.link):
            return found.read()
        try:
            return asyncio.run(self._fetched()).content.read()
        except DownloadError as error:
            raise OSError(f"{error.kind}: {error}") from None

    def identity(self) -> str:
        """Of the stored file. Raises OSError where it is not stored: nobody knows before it is fetched."""
        if found := stored(self.options.store, self.link):
            return found.identity()
        raise OSError("it is not downloaded")

    async def _fetched(self) -> Fetched:
        from vec_pipeline.downloads.client import Client

        async with Client(self.options, None, Statistics()) as client:
            return await self.fetch(client)
