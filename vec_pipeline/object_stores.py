"""Object stores and remote folders: opens through fsspec what an address such as s3:// names, and explains failures."""

import errno
import logging
import os
import re
from typing import Any

from vec_pipeline.record import NotFound, UserError

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*@)?(.*)", re.IGNORECASE | re.DOTALL)
LATER_LOGINS = re.compile(r"(?<=::)([a-z][a-z0-9+.-]*://)[^/]*@", re.IGNORECASE)  # of an address that holds another
LOCAL = "file"
LOGIN_IS_A_CONTAINER = ("abfs", "abfss", "az", "adl")  # abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/
LIBRARIES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(LOGIN_IS_A_CONTAINER, "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "sshfs"),
}
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")  # an object is there once it has been put as a whole
HOSTS = ("sftp", "ssh", "ftp", "smb", "webdav", "webhdfs", "hdfs")  # whose addresses name any host there is
CONNECTIONS = ("sftp", "ssh", "ftp", "smb")  # one connection for all requests: when it breaks, a new one is needed
# sshfs would accept any host key, wait for a host without end, and fail at a name that is not UTF-8.
SSH = {
    "known_hosts": (),
    "connect_timeout": 15,
    "keepalive_interval": 15,
    "sftp_client_kwargs": {"path_errors": "surrogateescape"},
}
S3 = {"config_kwargs": {"max_pool_connections": 64}}  # botocore has 10 at once, whatever `downloads_at_once` says
DEFAULTS: dict[str, dict[str, Any]] = {"s3": S3, "s3a": S3, "sftp": SSH, "ssh": SSH}
CREDENTIALS = {  # where a library looks for them
    "s3fs": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for what is public",
    "gcsfs": "gcloud auth application-default login",
    "adlfs": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
    "sshfs": "the user and the key in ~/.ssh/config",
}
REFUSALS = {
    *("PermissionError", "NoCredentialsError", "ClientAuthenticationError", "DefaultCredentialsError"),
    "error_perm",  # of FTP
}
UNKNOWN_HOST = "HostKeyNotVerifiable"
TIMEOUTS = {"TimeoutError", "ConnectTimeoutError", "FSTimeoutError", "ReadTimeoutError", "ServerTimeoutError"}
BROKEN_CONNECTIONS = {
    *("ChannelOpenError", "ClientConnectionError", "ClientPayloadError", "DisconnectError", "HTTPClientError"),
    *("IncompleteRead", "EOFError", "SFTPConnectionLost", "SFTPNoConnection", "ServiceRequestError"),
    *("ServiceResponseError", "error_temp"),
}
MOST_CHARACTERS = 200  # of another library's message


def is_address(text: str) -> bool:
    return bool(ADDRESS.match(text))


def scheme_of(address: str) -> str:
    """Such as s3, in small letters; file for a path of this machine."""
    found = ADDRESS.match(address)
    return found[1].lower() if found else LOCAL


def is_known(scheme: str) -> bool:
    """Whether addresses of it can be opened, once the library is there that it needs."""
    return scheme in LIBRARIES or scheme in HOSTS or scheme == "memory"


def check_host(address: str, *, allow_private: bool) -> None:
    """Raise PermissionError where an address could lead to a private network, and must not."""
    if not allow_private and scheme_of(address) not in OBJECT_STORES:
        raise PermissionError(f"{scheme_of(address)}:// may lead to a private address: set allow_private to read it")


def login_of(address: str) -> str:
    """The `user:password@` of an address, or an empty text."""
    found = ADDRESS.match(address)
    return "" if not found or found[1].lower() in LOGIN_IS_A_CONTAINER else found[2] or ""


def without_login(address: str) -> str:
    """An address as it may be shown and saved."""
    return LATER_LOGINS.sub(r"\1", address.replace(login_of(address), "", 1))


def opened(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Credentials come from where the library looks for them, from fsspec's configuration (FSSPEC_S3_KEY, say), or, for
    hosts, from the address. An asynchronous file system is shared by all threads, any other belongs to the one that
    asks. Raises UserError where its library is missing, and what the library raises where it cannot connect.
    """
    import fsspec
    from fsspec.config import conf

    scheme = scheme_of(address)
    address = f"{scheme}://{address.partition('://')[2]}" if is_address(address) else address
    try:
        cls = fsspec.get_filesystem_class(scheme)
    except ImportError:
        library = LIBRARIES.get(scheme)
        install = f"{library}: pip install 'vec-pipeline[remote]'" if library else "a library that is not installed"
        raise UserError(f"{scheme}:// needs {install}") from None
    except ValueError:
        raise UserError(f"{scheme}:// is not known: name s3://, gs://, az://, sftp:// or ftp://") from None
    logging.getLogger(cls.__module__.partition(".")[0]).setLevel(logging.CRITICAL)  # tracebacks of each attempt
    until_query = re.split("[?#]", address)[0]  # in a name, these letters are letters
    of_address = cls._get_kwargs_from_urls(until_query) if scheme != LOCAL else {}
    filesystem = cls(**{**DEFAULTS.get(scheme, {}), **conf.get(scheme, {}), **of_address})
    filesystem.retries = 1  # of s3fs: botocore below it tries again, too, as AWS_MAX_ATTEMPTS says
    filesystem.dircache.use_listings_cache = False  # it would grow with what is listed, and hide what is new
    if scheme == LOCAL:
        return filesystem, os.path.abspath(os.path.expanduser(address.removeprefix("file://")))
    if "host" in of_address:
        return filesystem, "/" + address.partition("://")[2].partition("/")[2].rstrip("/")
    return filesystem, cls._strip_protocol(address)


def disconnect(address: str, error: Exception) -> None:
    """Let the next `opened` make a new connection where this one may be broken: it would fail all later requests."""
    if scheme_of(address) in CONNECTIONS and not isinstance(error, (FileNotFoundError, PermissionError)):
        import fsspec

        fsspec.get_filesystem_class(scheme_of(address)).clear_instance_cache()


def translated(error: Exception) -> Exception:
    """A library's exception as one of Python's, by which it is known whether to try again."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, (FileNotFoundError, PermissionError, ConnectionError)):
        return error
    message = error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
    if kinds & TIMEOUTS:
        return TimeoutError(message)
    if kinds & BROKEN_CONNECTIONS or getattr(error, "errno", None) in (errno.EBUSY, errno.EREMOTEIO):  # 503 and 500
        return ConnectionError(message)
    return OSError(message)


def explained(address: str, error: Exception) -> UserError:
    """What a failure to open or to list an address means, and what to do."""
    shown = without_login(address)
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{shown} does not exist: name an object or a folder that is there")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    remedy = "check the address and the network"
    if kinds & REFUSALS or (isinstance(error, ValueError) and scheme_of(address) in LOGIN_IS_A_CONTAINER):
        remedy = f"check the credentials: {CREDENTIALS.get(LIBRARIES.get(scheme_of(address), ''), 'user and password')}"
    elif UNKNOWN_HOST in kinds:
        remedy = "connect to it once with ssh, which notes its key in ~/.ssh/known_hosts"
    return UserError(f"{shown} cannot be reached ({reason_of(error)}): {remedy}")


def reason_of(error: Exception) -> str:
    """The kind of an exception and the first line of its message."""
    message = str(error).partition("\n")[0][:MOST_CHARACTERS]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
