"""Opens the file of a list: local, remote or standard input, compressed or not."""

import gzip
import io
import os
import sys
from typing import BinaryIO, cast

from vec_pipeline import object_stores
from vec_pipeline.lists import STDIN
from vec_pipeline.object_stores import explained, is_address, without_login
from vec_pipeline.record import NotFound, UserError

BUFFER_BYTES = 1 << 16


def open_list(address: str) -> io.BufferedReader:
    """Open the content of a list, decompressed. Raises NotFound, and UserError where it cannot be opened."""
    if address == STDIN:
        return cast(io.BufferedReader, sys.stdin.buffer)
    file = open_file(address)
    if address.lower().endswith(".zst"):
        import pyarrow as pa

        file = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    elif address.lower().endswith(".gz"):
        file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    return io.BufferedReader(cast(io.RawIOBase, file), BUFFER_BYTES)


def open_file(address: str) -> BinaryIO:
    """Open a file as it is. Raises NotFound, and UserError where it cannot be opened."""
    if not is_address(address):
        try:
            return open(address, "rb")
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{address} does not exist: name a list of pictures") from None
        except OSError as error:
            raise UserError(f"{address} cannot be read ({reason(error)}): name another list") from None
    try:
        file_system, path = object_stores.opened(address)
        return cast(BinaryIO, file_system.open(path, "rb"))
    except Exception as error:  # of any library
        raise explained(address, error) from None


def size_bytes(address: str) -> int:
    """As it is stored. Raises OSError, and UserError where the store cannot be asked."""
    if not is_address(address):
        return os.stat(address).st_size
    try:
        file_system, path = object_stores.opened(address)
        return int(file_system.size(path))
    except Exception as error:  # of any library
        raise explained(address, error) from None


def identity(address: str) -> str:
    """What changes with the list's content: size and time, or what the store says. Raises as `size_bytes`."""
    if not is_address(address):
        status = os.stat(address)
        return f"{status.st_size} {status.st_mtime_ns}"
    try:
        file_system, path = object_stores.opened(address)
        return str(file_system.ukey(path))
    except Exception as error:  # of any library
        raise explained(address, error) from None


def shown(address: str) -> str:
    """As messages have it, without a user's name and password."""
    return "standard input" if address == STDIN else without_login(address)


def reason(error: BaseException) -> str:
    """An error in one line, without the path that OSError repeats."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]
