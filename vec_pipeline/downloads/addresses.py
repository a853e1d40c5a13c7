"""Addresses of the web: as they are sent, and as keys, which hold no credentials."""

import re
from hashlib import sha1
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from yarl import URL

ADDRESS = re.compile(r"(https?)://([^/?#\\]*)([^#]*)", re.IGNORECASE | re.DOTALL)  # scheme, authority, what is sent
HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d*)?", re.IGNORECASE)
UNQUOTED = "!#$%&'()*+,-./:;=?@[]_~|^"  # what is sent as it stands, beside letters and digits; % begins an escape
PARAMETER = re.compile(r"(?<=[?&;#])([^=?&;#]+)=([^&;#]*)")
SIGNED = re.compile(r"[?&;]signature=", re.IGNORECASE)
# Names of parameters that change whenever an address is signed again.
SIGNING = ("x-amz-", "x-goog-", "x-oss-")  # how they begin
SIGNATURES = frozenset(
    "signature awsaccesskeyid googleaccessid ossaccesskeyid key-pair-id sig oauth_signature hdnts hdnea q-ak "
    "q-signature q-sign-time q-key-time".split()
)
BESIDE_A_SIGNATURE = frozenset("expires policy".split())
# Names of parameters whose values are credentials, and may tell one picture from another.
SECRETS = frozenset(
    "access_token accesstoken auth auth_key authkey auth_token oauth_token id_token session_token sessiontoken jwt "
    "token key api_key api-key apikey x-api-key subscription-key ocp-apim-subscription-key client_secret secret sign "
    "password passwd".split()
)
HIDDEN = re.compile(r"~[0-9a-f]{8}")  # what stands for the value of one


def is_address(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def key_of(url: str) -> str:
    """The address without space around it, user and password. Values that sign it are left out, other secrets hashed.

    The rest stays byte for byte. The key of a key is the key itself.
    """
    url = url.strip()
    if not (found := ADDRESS.match(url)):
        return url
    rest = url[found.end(2) :]
    if "=" in rest:
        names = SIGNATURES | BESIDE_A_SIGNATURE if SIGNED.search(rest) else SIGNATURES
        rest = PARAMETER.sub(lambda pair: without_secret(pair, names), rest)
    return f"{found[1]}://{found[2].rpartition('@')[2]}{rest}"


def without_secret(parameter: re.Match[str], signatures: frozenset[str]) -> str:
    """A parameter as a key has it."""
    name, value = unquote(parameter[1]).lower(), parameter[2]
    if name in signatures or name.startswith(SIGNING):
        return f"{parameter[1]}="
    if value and not HIDDEN.fullmatch(value) and (name in SECRETS or holds_secret(unquote(value))):
        data = value.encode("utf-8", "surrogateescape")
        return f"{parameter[1]}=~{sha1(data, usedforsecurity=False).hexdigest()[:8]}"
    return parameter[0]


def holds_secret(value: str) -> bool:
    """Whether a value is an address of its own that has a secret."""
    if not is_address(value):
        return False
    names = (unquote(found[1]).lower() for found in PARAMETER.finditer(value))
    return "@" in value[8:].partition("/")[0] or any(
        name in SECRETS or name in SIGNATURES or name.startswith(SIGNING) for name in names
    )


def to_send(url: str) -> "URL":
    """The address as a request has it: without its fragment, and with escapes for what must not be sent as it is.

    Escapes that are there stay as they are: a signature may depend on them. Raises ValueError.
    """
    from yarl import URL

    if not (found := ADDRESS.match(url.strip())):
        raise ValueError("no address that begins with http:// or https://")
    scheme, authority, rest = found.groups()
    user, at, host = authority.rpartition("@")
    if not host.isascii():
        host = str(URL(f"{scheme}://{host}")).partition("://")[2].rstrip("/")
    if not HOST.fullmatch(host):
        raise ValueError("no name of a host")
    if rest and not rest.startswith(("/", "?")):
        raise ValueError("no slash after the host")
    sent = f"{quote(user, UNQUOTED)}{at}{host}{quote(rest, UNQUOTED, errors='surrogateescape')}"
    address = URL(f"{scheme.lower()}://{sent}", encoded=True)
    if not address.host or not address.port:
        raise ValueError("no name of a host")
    return address
