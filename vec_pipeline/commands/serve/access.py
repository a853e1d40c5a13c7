"""Who may use the server: loopback without a token, any other address with one, of which only a hash is kept."""

import hmac
import ipaddress
import os
import secrets
from hashlib import sha256
from pathlib import Path

from vec_pipeline.record import UserError


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_token(path: Path) -> str:
    """Make a token, keep its hash in a file that only its owner reads, and return it: it cannot be had again."""
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(hash_of(token) + "\n")
    return token


def kept_hash(path: Path, host: str) -> str:
    """The hash that tokens are compared with; empty where none is needed.

    Raises UserError where others can reach the address, and there is no token yet.
    """
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if is_loopback(host):
            return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): make a new one with --new-token") from None
    raise UserError(f"others can reach {host}: make a token first, with --new-token, or use --host 127.0.0.1")


def hash_of(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def is_right(header: str, kept: str) -> bool:
    """Whether an Authorization header holds the token of a hash; the time that it takes says nothing about it."""
    scheme, _, token = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(hash_of(token.strip()), kept)
