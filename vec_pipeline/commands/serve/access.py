"""Who may use the server: loopback without a token, any other address with one, of which only a hash is kept."""

import hmac
import ipaddress
import os
import re
import secrets
import tempfile
from hashlib import sha256
from pathlib import Path

from vec_pipeline.record import UserError

HASH = re.compile("[0-9a-f]{64}")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def new_token(path: Path) -> str:
    """Make a token, keep its hash in a file that only its owner reads, and return it: it cannot be had again.

    Raises UserError where it cannot be kept; the one before is still there then.
    """
    token = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(dir=path.parent)  # for its owner alone
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(hash_of(token) + "\n")
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another --csv") from None
    return token


def kept_hash(path: Path, host: str) -> str:
    """The hash that tokens are compared with; empty where none is needed.

    Raises UserError where others can reach the address and there is no token yet, and where the file holds none.
    """
    try:
        found = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if is_loopback(host):
            return ""
        raise UserError(
            f"others can reach {host}: make a token first, with --new-token, or use --host 127.0.0.1"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): make a new one with --new-token") from None
    if not HASH.fullmatch(found):  # an empty one would let everybody in
        raise UserError(f"{path} holds no hash of a token: make a new one with --new-token")
    return found


def hash_of(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def is_right(header: str, kept: str) -> bool:
    """Whether an Authorization header holds the token of a hash; the time that it takes says nothing about it."""
    scheme, _, token = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(hash_of(token.strip()), kept)
