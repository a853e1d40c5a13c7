"""Addresses of the web: as they are sent, and as keys, which hold no credentials."""

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from yarl import URL

ADDRESS = re.compile(r"(https?)://([^/?#\\]*)([^#]*)", re.IGNORECASE | re.DOTALL)  # scheme, authority, what is sent
HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d*)?", re.IGNORECASE)
UNQUOTED = "!#$%&'()*+,-./:;=?@[]_~|^"  # what is sent as it stands, beside letters and digits; % begins an escape
PARAMETER = re.compile(r"(?<=[?&;#])([^=?&;#]+)=([^&;#]*)")
SIGNED = re.compile(r"[?&;]signature=", re.IGNORECASE)
# Names of parameters whose values are credentials, or change whenever an address is signed again.
SIGNING = ("x-amz-", "x-goog-", "x-oss-")  # how they begin
SECRETS = frozenset(
    "signature awsaccesskeyid googleaccessid ossaccesskeyid key-pair-id sig access_token accesstoken auth_token "
    "oauth_token oauth_signature token api_key api-key apikey x-api-key client_secret secret password passwd".split()
)
BESIDE_A_SIGNATURE = frozenset("expires policy".split())


def is_address(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def key_of(url: str) -> str:
    """The address without space around it, user, password and the values of parameters that sign it.

    The rest stays byte for byte. The key of a key is the key itself.
    """
    url = url.strip()
    if not (found := ADDRESS.match(url)):
        return url
    rest = url[found.end(2) :]
    if "=" in rest:
        names = SECRETS | BESIDE_A_SIGNATURE if SIGNED.search(rest) else SECRETS
        rest = PARAMETER.sub(lambda pair: without_secret(pair, names), rest)
    return f"{found[1]}://{found[2].rpartition('@')[2]}{rest}"


def without_secret(parameter: re.Match[str], names: frozenset[str]) -> str:
    name = unquote(parameter[1]).lower()
    return f"{parameter[1]}=" if name in names or name.startswith(SIGNING) else parameter[0]


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
