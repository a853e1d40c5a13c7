"""What a post of reddit or an answer to one holds, as archives and the API have it: texts, times, pictures."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = Mapping[str, Any]

ID = re.compile(r"[a-z0-9]{1,13}")
POST, ANSWER = "t3_", "t1_"  # how the full names of either begin
GONE_TEXTS = ("[deleted]", "[removed]")
LARGEST_NUMBER = 2**53  # the largest range in which a float64 holds every integer
NO_AUTHOR = ("", "[deleted]")
BOT = re.compile(r"automoderator|.*bot", re.IGNORECASE)
USER = re.compile(  # in any text; of the host no more than it can have, else the search takes minutes
    r"(?:(?:https?://)?(?:[\w-]{1,63}\.){0,4}reddit\.com/|(?<![a-z0-9/])/?)(?:u/|user/|r/u_)([\w-]{2,})",
    re.IGNORECASE | re.ASCII,
)
MEDIA_NAME = re.compile(r"[\w-]+", re.ASCII)
SIGN = r"""(?:[^\s()\[\]<>"'\\]|'(?![,;]))"""  # of an address in a text: an apostrophe may be a quote that ends
IN_PARENTHESES = rf"\((?:{SIGN}|\({SIGN}*\))*\)"  # one that does not end is no part of the address
ADDRESS = re.compile(rf"https?://(?:{SIGN}|{IN_PARENTHESES})+", re.IGNORECASE)
SIGN_OF_TEXT = re.compile(r"['(]")
ESCAPED = re.compile(r"\\([!-/:-@^-`{-~])")  # in Markdown; what is no sign of an address in a text stays as it is
LINK_END = ".,;:!?*_|'"  # of a sentence, not of the address before it
PICTURE = re.compile(r"\.(?:jpe?g|png|webp|avif|heic|bmp|tiff?)$", re.IGNORECASE)
REDDIT_HOSTS = ("i.redd.it", "preview.redd.it")
IMGUR_HOST = re.compile(r"(?:(?:www|m|i)\.)?imgur\.com")
IMGUR_PICTURE = re.compile(
    r"/(?:(?:r|t)/[^/]+/|[^/]+-)?([A-Za-z0-9]{5,8})(_d)?(\.[A-Za-z]{3,4})?"
)  # _d: a smaller copy
IMGUR_ALBUM = re.compile(r"/(?:a|gallery)/")
REDDIT_PAGE_HOST = re.compile(r"(?:\w+\.)?reddit\.com")
REDDIT_PAGE = "/media"  # which shows the picture whose address is its `url`
UPLOADED = re.compile(r"https?://(?:i|preview)\.redd\.it/[^\x00-\x20\x7f]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
TITLE_IN_NAME = "-v0-"  # stands before the name of the picture in an address of preview.redd.it


@dataclass(frozen=True, slots=True)
class Entry:
    """A post, or an answer to one. What its fields are called says which column they become.

    post: the id of the post that it answers; empty for a post itself.
    author: a hash of the name; empty where the account is gone.
    time_s: since 1970.
    pictures: their addresses, in their order, each once.
    albums: of imgur, that were linked to and not opened.
    left_out: why it has no row; empty where it may have one.
    """

    id: str
    post: str = ""
    title: str = ""
    text: str = ""
    score: float | None = None
    comments: float | None = None
    flair: str = ""
    time_s: float | None = None
    author: str = ""
    pictures: list[str] = field(default_factory=list)
    albums: int = 0
    is_crosspost: bool = False
    left_out: str = ""


def entry_of(found: Json, salt: bytes) -> Entry | None:
    """A post or an answer to a post; None for an answer to an answer. Raises ValueError for anything else."""
    if not ID.fullmatch(text(found, "id")):
        raise ValueError("it has no id")
    if "link_id" in found:
        return answer_of(found, salt) if text(found, "parent_id").startswith(POST) else None
    if "title" in found:
        return post_of(found, salt)
    raise ValueError("it is neither a post nor a comment")


def post_of(found: Json, salt: bytes) -> Entry:
    parents = found.get("crosspost_parent_list")
    parent = first_mapping(parents)
    shown = parent or found  # a cross-post shows what is in the post that it repeats
    is_gone = is_removed(found, "selftext") or (bool(parent) and is_removed(shown, "selftext"))
    pictures, albums = pictures_of_post(shown)
    return Entry(
        id=text(found, "id"),
        title=shown_text(found, "title", salt),
        text="" if is_gone else shown_text(shown, "selftext", salt),
        score=number(found, "score"),
        comments=number(found, "num_comments"),
        flair=shown_text(found, "link_flair_text", salt),
        time_s=number(found, "created_utc"),
        author=hash_of(text(found, "author"), salt),
        pictures=pictures,
        albums=albums,
        is_crosspost=bool(parent),
        left_out="deleted or removed" if is_gone else "" if pictures else "without a picture",
    )


def answer_of(found: Json, salt: bytes) -> Entry:
    """An answer. Its text is not kept: what counts is the picture that it links to."""
    author, post = text(found, "author"), text(found, "link_id").removeprefix(POST)
    if not ID.fullmatch(post):
        raise ValueError("it names no post")
    inside = list(inline_pictures(found))
    linked, albums = pictures_at(addresses_in(text(found, "body")))
    pictures = list(dict.fromkeys([*linked, *inside]))
    if is_removed(found, "body"):
        left_out = "deleted or removed"
    elif not pictures:
        left_out = "without a picture"
    elif BOT.fullmatch(author):
        left_out = "by bots"
    else:
        left_out = "by who asked" if found.get("is_submitter") is True else ""
    return Entry(
        id=text(found, "id"),
        post=post,
        score=number(found, "score"),
        time_s=number(found, "created_utc"),
        author=hash_of(author, salt),
        pictures=pictures,
        albums=albums,
        left_out=left_out,
    )


def retrieved_s(found: Json) -> float:
    """When it was read from reddit, in seconds since 1970; 0 where the archive does not say."""
    again = number(mapping(found, "_meta"), "retrieved_2nd_on")
    return again or number(found, "retrieved_on") or number(found, "retrieved_utc") or 0.0


def is_removed(found: Json, text_name: str) -> bool:
    """Whether its author or a moderator has taken it back, then or later."""
    was_later = mapping(found, "_meta").get("was_deleted_later") is True
    return was_later or bool(found.get("removed_by_category")) or text(found, text_name) in GONE_TEXTS


# -- values of any type ---------------------------------------------------------------------------------------------


def text(found: Json, name: str) -> str:
    """A text without escapes of HTML, halves of characters and zero bytes; empty where it is none."""
    value = found.get(name)
    if not isinstance(value, str):
        return ""
    whole = html.unescape(value).encode("utf-8", "replace").decode()
    return whole.replace("\0", "").strip()


def number(found: Json, name: str) -> float | None:
    """A number, also one that is written as a text, as old archives do; None where it is none."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        real = float(value)
    except (ValueError, OverflowError):
        return None
    if not abs(real) < LARGEST_NUMBER:  # nor what is no number
        return None
    return int(real) if real.is_integer() else real


def mapping(found: Json, name: str) -> Json:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> Iterator[Json]:
    """Those in what should be a list of them."""
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else iter(())


def first_mapping(value: Any) -> Json:
    return next(mappings(value), {})


def shown_text(found: Json, name: str, salt: bytes) -> str:
    """A text, in which names of users are hashed, too."""
    return USER.sub(lambda match: hashed(match, salt), text(found, name).replace("\\_", "_"))


def hashed(match: re.Match[str], salt: bytes) -> str:
    """A name of a user in a text; what ends emphasis that began right before it is no part of the name."""
    is_emphasized = match.string[: match.start()].endswith("_")
    name = match[1].rstrip("_") if is_emphasized else match[1]
    return f"u/{hash_of(name, salt)}{match[1][len(name) :]}"


def hash_of(name: str, salt: bytes) -> str:
    """Sixteen digits that stand for a name of a user, the same for the same salt; empty where there is no name.

    salt: at most 64 bytes.
    """
    if name in NO_AUTHOR:
        return ""
    return blake2b(name.lower().encode(), key=salt, digest_size=8).hexdigest()


# -- pictures -------------------------------------------------------------------------------------------------------


def pictures_of_post(found: Json) -> tuple[list[str], int]:
    """Addresses of its pictures, and the number of albums that it links to and that only a key opens."""
    uploaded = list(gallery_pictures(found))
    link = text(found, "url_overridden_by_dest") or text(found, "url")
    linked, albums = pictures_at([link, *addresses_in(text(found, "selftext"))])
    pictures = list(dict.fromkeys([*uploaded, *linked] if uploaded else [*linked, *inline_pictures(found)]))
    if not pictures and not found.get("is_video"):
        pictures = list(previews(found))
    return pictures, 0 if pictures else albums


def gallery_pictures(found: Json) -> Iterator[str]:
    media = mapping(found, "media_metadata")
    for item in mappings(mapping(found, "gallery_data").get("items")):
        yield from picture_of_media(text(item, "media_id"), mapping(media, text(item, "media_id")))


def inline_pictures(found: Json) -> Iterator[str]:
    """Those within the text, and of a gallery whose order is not known."""
    media = mapping(found, "media_metadata")
    for name in media:
        yield from picture_of_media(name, mapping(media, name))


def picture_of_media(name: str, media: Json) -> Iterator[str]:
    """The address of an uploaded picture; none of animations, stickers, and what could not be processed."""
    kind, _, suffix = text(media, "m").partition("/")
    if media.get("status") != "valid" or media.get("e") != "Image" or kind != "image":
        return
    if not MEDIA_NAME.fullmatch(name):  # a sticker, or nothing of reddit's
        return
    address = text(mapping(media, "s"), "u") or f"https://i.redd.it/{name}.{suffix}"
    yield picture_address(address) or address


def previews(found: Json) -> Iterator[str]:
    """The picture that reddit shows of a link: a copy of the first one that is there."""
    image = first_mapping(mapping(found, "preview").get("images"))
    if address := text(mapping(image, "source"), "url"):
        yield picture_address(address) or address


def addresses_in(markdown: str) -> list[str]:
    """The addresses that a text links to. One that is no picture ends before its first parenthesis or apostrophe."""
    plain = ESCAPED.sub(r"\1", markdown)
    whole = [found[0].rstrip(LINK_END) for found in ADDRESS.finditer(plain)]
    return [each if picture_address(each) else SIGN_OF_TEXT.split(each)[0].rstrip(LINK_END) for each in whole]


def pictures_at(addresses: Sequence[str]) -> tuple[list[str], int]:
    """Addresses of the pictures that links lead to, and the number of albums among them that only a key opens."""
    return [found for each in addresses if (found := picture_address(each))], count_albums(addresses)


def count_albums(addresses: Iterable[str]) -> int:
    parts = [each.partition("://")[2].partition("/") for each in dict.fromkeys(addresses)]
    return sum(bool(IMGUR_HOST.fullmatch(host.lower()) and IMGUR_ALBUM.match(f"/{path}")) for host, _, path in parts)


def picture_address(address: str) -> str:
    """The address of the picture that a link leads to; empty where it leads to none, or that cannot be told.

    A preview of reddit's becomes the picture itself, a page of reddit or imgur that shows one picture that picture.
    """
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").lower()
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or CONTROL.search(address):
        return ""
    if host in REDDIT_HOSTS:
        name = parts.path.rpartition("/")[2].rpartition(TITLE_IN_NAME)[2]
        return f"https://i.redd.it/{name}" if PICTURE.search(name) else ""
    if REDDIT_PAGE_HOST.fullmatch(host) and parts.path == REDDIT_PAGE:
        shown = parse_qs(parts.query).get("url", [""])[0]
        return picture_address(shown) if UPLOADED.fullmatch(shown) else ""
    if IMGUR_HOST.fullmatch(host):
        return picture_of_imgur(parts.path)
    return address.partition("#")[0] if PICTURE.search(parts.path) else ""


def picture_of_imgur(path: str) -> str:
    found = IMGUR_PICTURE.fullmatch(path)
    if not found or not PICTURE.search(found[3] or ".jpg"):
        return ""
    suffix = ".jpg" if found[2] or not found[3] else found[3].lower()  # imgur sends what it has, whatever the suffix
    return f"https://i.imgur.com/{found[1]}{suffix}"
