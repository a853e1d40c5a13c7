"""Bodies of responses that are compressed although they were asked for as they are."""

import zlib
from collections.abc import Iterator

from vec_pipeline.downloads import DownloadError
from vec_pipeline.pictures.kinds import kind_of

ZLIB_ENCODINGS = ("gzip", "x-gzip", "deflate")
OTHER_ENCODINGS = ("br", "zstd", "compress", "x-compress")
ANY_ZLIB, RAW_DEFLATE = 47, -15  # how zlib calls gzip or zlib, and neither
PART_BYTES = 262_144  # that are decompressed at a time: a megabyte may stand for a gigabyte


class Decoder:
    """Decompresses a body whose server compresses what was asked for as it is."""

    def __init__(self, encoding: str, data: bytes) -> None:
        """data: the first bytes; if they are those of a picture, nothing is compressed, whatever `encoding` says."""
        encoding = encoding.strip().lower()
        if encoding in OTHER_ENCODINGS and not kind_of(data):
            raise DownloadError("InvalidEncoding", f"the server compresses it by {encoding}, unasked")
        self._object = zlib.decompressobj(ANY_ZLIB) if encoding in ZLIB_ENCODINGS and not kind_of(data) else None
        if self._object and encoding == "deflate" and not is_zlib(data):
            self._object = zlib.decompressobj(RAW_DEFLATE)

    def parts(self, data: bytes) -> Iterator[bytes]:
        """What comes of these bytes, in parts of bounded size."""
        if not self._object:
            yield data
            return
        try:
            while not self._object.eof:
                part = self._object.decompress(data, PART_BYTES)
                data = self._object.unconsumed_tail
                if part:
                    yield part
                elif not data:
                    break
        except zlib.error:
            raise DownloadError("InvalidEncoding", "the server says that it is compressed, and it is not") from None

    def check_end(self) -> None:
        if self._object and not self._object.eof:
            raise DownloadError("Truncated", "what the server compressed has no end", may_pass=True)


def is_zlib(data: bytes) -> bool:
    try:
        zlib.decompressobj(ANY_ZLIB).decompress(data, 1)
    except zlib.error:
        return False
    return True
