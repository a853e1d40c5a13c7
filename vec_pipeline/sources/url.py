"""An address of the web: one image."""

from collections.abc import Iterator, Mapping, Sequence

from vec_pipeline.downloads.addresses import is_address, key_of
from vec_pipeline.downloads.web import WEB_COLUMNS, web_record
from vec_pipeline.lists import suffix_of
from vec_pipeline.record import Record, SourceOptions, UserError


class Url:
    """The record of the image at an http or https address."""

    columns: Mapping[str, str] = WEB_COLUMNS
    is_stream = False
    is_counted = False

    def __init__(self, argument: str, exclude: Sequence[str] = (), options: SourceOptions | None = None) -> None:
        if suffix_of(argument.partition("?")[0]):
            raise UserError(f"{key_of(argument)} is a list at a web address: download it, or pipe it into `run -`")
        self.notes: list[str] = []
        self.failures: list[str] = []
        self._url = argument
        self._options = options or SourceOptions()

    @classmethod
    def accepts(cls, argument: str) -> bool:
        return is_address(argument)

    def __iter__(self) -> Iterator[Record]:
        yield web_record(self._url, self._options)
