"""What the network does: addresses that must not be connected to, and failures by their kind."""

import errno
import ipaddress
import math
import os
import re
import socket
import ssl
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from vec_pipeline.downloads import DownloadError

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv6 addresses that end in one of IPv4
ALSO_PRIVATE = (  # for the rest, ipaddress knows
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's metadata
    ipaddress.ip_network("192.0.0.0/24"),  # Oracle's metadata, and others
)
PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
MESSAGE_LENGTH = 300  # of what a library says
NO_NETWORK = (errno.ENETUNREACH, errno.ENETDOWN)


class PrivateAddressError(OSError):
    """A connection to a private address was refused."""


def is_private(address: str) -> bool:
    """Whether an IP address belongs to no public host: private, loopback, link-local, multicast, reserved, metadata."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = (
            ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found.ipv4_mapped or found.sixtofour
        )
        if inner:
            return is_private(str(inner))
        if found.is_site_local:
            return True
    is_special = found.is_multicast or found.is_reserved or any(found in network for network in ALSO_PRIVATE)
    return is_special or not found.is_global


def public_socket(address: Any) -> socket.socket:
    """The socket of a connection that is about to be made. Raises PrivateAddressError.

    It is asked for each address that is really connected to, so no answer of a name server gets past it.
    address: as `getaddrinfo` returns it.
    """
    family, kind, protocol, _, (host, *_) = address
    if is_private(host):
        raise PrivateAddressError(errno.EACCES, "a private address")  # the same words for each address of a host
    return socket.socket(family, kind, protocol)


def failure_of(error: Exception, received: int = 0) -> DownloadError:
    """What an exception of a request means.

    received: bytes of the body so far.
    """
    import aiohttp

    match error:
        case aiohttp.ConnectionTimeoutError():
            return DownloadError("Timeout", "the host could not be connected to in time", may_pass=True)
        case aiohttp.SocketTimeoutError():
            return DownloadError("Timeout", f"nothing came any more after {received:,} bytes", may_pass=True)
        case TimeoutError():
            return DownloadError("Timeout", "it was not there within download_timeout_s", may_pass=True)
        case aiohttp.ClientConnectorCertificateError():  # a ValueError, too
            return DownloadError("ConnectionFailed", "the certificate of the host is not valid")
        case aiohttp.InvalidURL() | ValueError():
            return DownloadError("InvalidURL", "the address cannot be asked for: correct it")
        case aiohttp.ClientConnectorError():
            return connection_failure(error.os_error)
        case aiohttp.ClientPayloadError():
            return DownloadError("Truncated", f"the connection ended after {received:,} bytes", may_pass=True)
        case aiohttp.ClientHttpProxyError():
            return DownloadError("ConnectionFailed", f"the proxy answered {error.status}", may_pass=True)
        case aiohttp.ClientResponseError():
            return DownloadError("ConnectionFailed", "the answer is not valid HTTP", may_pass=True)
    if received:
        return DownloadError("Truncated", f"the connection ended after {received:,} bytes", may_pass=True)
    if isinstance(error, OSError):
        return connection_failure(error)
    return DownloadError("ConnectionFailed", "the connection ended without an answer", may_pass=True)


def connection_failure(error: OSError) -> DownloadError:
    """Why there is no connection."""
    if isinstance(error, PrivateAddressError):
        return DownloadError("PrivateAddress", "the host is in a private network: set allow_private to fetch from it")
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return DownloadError("NoNetwork", "names of hosts cannot be looked up: check the network", may_pass=True)
        return DownloadError("ConnectionFailed", "no host has this name")
    if isinstance(error, ssl.SSLError):
        return DownloadError("ConnectionFailed", "no encrypted connection can be agreed upon", may_pass=True)
    kind = "NoNetwork" if error.errno in NO_NETWORK else "ConnectionFailed"
    return DownloadError(kind, os.strerror(error.errno) if error.errno else "no connection", may_pass=True)


def message_of(error: Exception) -> str:
    """What a library says, in one line, without a password that an address in it may have."""
    return PASSWORD.sub("", " ".join(str(error).split()))[:MESSAGE_LENGTH]


def retry_after_s(value: str | None) -> float | None:
    """What a Retry-After header says, in seconds from now: it is a number, or a date of HTTP."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
