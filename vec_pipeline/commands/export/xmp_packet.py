"""Texts into a packet of XMP, in which all that others wrote stays byte for byte."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
NAMESPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
SUBJECT = "dc:subject"  # the one property that is a list of words; all others are texts by language
ANY_LANGUAGE = "x-default"
LANGUAGE = "http://www.w3.org/XML/1998/namespace lang"  # expat puts a space between namespace and name
EXTENDED = b"HasExtendedXMP"  # what a packet says that goes on in other segments of its JPEG
EMPTY = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TAG = re.compile(rb"""<[^<>"']*(?:"[^"]*"[^<>"']*|'[^']*'[^<>"']*)*>""")

Items = list[tuple[str, str]]  # the language, empty for a word, and the text
Texts = Mapping[str, Items]  # by property, such as dc:subject; texts by language begin with that of x-default


class UnreadableXmp(Exception):  # noqa: N818 (it says what happened)
    """A packet that is no XMP, or of a form that nothing can be added to."""


class Merged(NamedTuple):
    """A packet with the texts.

    added: those that nobody else had written.
    kept: the properties that somebody else wrote, and that stay as they were.
    """

    packet: bytes
    added: dict[str, Items]
    kept: list[str]


@dataclass
class Element:
    """An element of a packet; places are in bytes.

    inner_start, inner_end: between its tags; both are `end` where it is one tag that ends with `/>`.
    """

    name: str  # the namespace, a space, the local name
    attributes: Mapping[str, str]
    start: int
    inner_start: int
    inner_end: int = 0
    end: int = 0
    text: str = ""
    children: list["Element"] = field(default_factory=list)


def merged(packet: bytes, texts: Texts, ours: Texts, *, overwrite: bool) -> Merged:
    """Put texts into a packet. Words join those that are there; a text stays where somebody else wrote one.

    packet: UTF-8; empty for a new one.
    ours: what was added to it the last time, which the new texts replace.
    overwrite: whether they replace those of others too, each in its language.

    Raises UnreadableXmp.
    """
    packet = packet or EMPTY
    rdf = rdf_of(packet)
    added, kept, new, edits = {}, [], [], []
    for name in dict.fromkeys([*texts, *ours]):
        elements = [each for parent in rdf.children for each in parent.children if each.name == full(name)]
        there = None if any(full(name) in parent.attributes for parent in rdf.children) else items_of(name, elements)
        if there is None:
            kept.append(name)
            continue
        foreign = [item for item in there if item not in ours.get(name, [])]
        if name != SUBJECT and foreign and not overwrite:
            kept.append(name)
            continue
        added[name], result = joined(name, foreign, texts.get(name, []))
        if result != there:
            edits += [(start_with_space(packet, each), each.end, b"") for each in elements]
            new += [written(name, result)] if result else []
    edits += [insertion(packet, rdf, new)] if new else []
    for start, end, replacement in sorted(edits, reverse=True):
        packet = packet[:start] + replacement + packet[end:]
    return Merged(packet, {name: items for name, items in added.items() if items}, kept)


def joined(name: str, foreign: Items, wanted: Items) -> tuple[Items, Items]:
    """What is added to the items of others, and all of them together."""
    if name == SUBJECT:
        known = {word.casefold() for _, word in foreign}
        added = [item for item in wanted if item[1].casefold() not in known]
        return added, [*foreign, *added]
    languages = {language for language, _ in wanted}
    return wanted, [*wanted, *(item for item in foreign if item[0] not in languages)]


def full(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{NAMESPACES[prefix]} {local}"


def rdf_of(packet: bytes) -> Element:
    """The element that holds the descriptions, which hold the properties. Raises UnreadableXmp."""
    found = [element for element in elements_of(packet) if element.name == f"{RDF} RDF"]
    if len(found) != 1:
        raise UnreadableXmp("it has no rdf:RDF" if not found else "it has several rdf:RDF")
    return found[0]


def elements_of(packet: bytes) -> list[Element]:
    """All elements, in the order in which they begin. Raises UnreadableXmp, also for a DTD: there are no entities."""
    found: list[Element] = []
    path: list[Element] = []
    parser = expat.ParserCreate(namespace_separator=" ")

    def declare(_: str, encoding: str | None, __: int) -> None:
        if (encoding or "utf-8").lower() != "utf-8":
            raise UnreadableXmp("it is not in UTF-8")

    def refuse(*_: object) -> None:
        raise UnreadableXmp("it has a document type")

    def begin(name: str, attributes: Mapping[str, str]) -> None:
        start = parser.CurrentByteIndex
        tag = TAG.match(packet, start)
        assert tag
        element = Element(name, attributes, start, tag.end(), end=tag.end() if tag[0].endswith(b"/>") else 0)
        if path:
            path[-1].children.append(element)
        path.append(element)
        found.append(element)

    def end(_: str) -> None:
        element = path.pop()
        element.inner_end = element.end or parser.CurrentByteIndex
        element.end = element.end or packet.index(b">", element.inner_end) + 1

    def text(part: str) -> None:
        path[-1].text += part

    parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = declare, refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, text
    try:
        if b"\0" in packet:  # of UTF-16, whose tags would be elsewhere
            raise UnreadableXmp("it is not in UTF-8")
        parser.Parse(packet, True)
    except (expat.ExpatError, ValueError) as error:
        raise UnreadableXmp(str(error)) from None
    return found


def items_of(name: str, elements: Sequence[Element]) -> Items | None:
    """The items of a property, None where it has parts that would be lost if it were written again."""
    found: Items = []
    for element in elements:
        lists = [each for each in element.children if each.name in (f"{RDF} Alt", f"{RDF} Bag", f"{RDF} Seq")]
        items = lists[0].children if lists else [element]
        known = {LANGUAGE} if name != SUBJECT else set()
        is_plain = all(item.attributes.keys() <= known and not (item.children and lists) for item in items)
        if len(lists) != len(element.children) or len(lists) > 1 or (lists and element.attributes) or not is_plain:
            return None
        usual = "" if name == SUBJECT else ANY_LANGUAGE
        found += [(item.attributes.get(LANGUAGE, usual), item.text) for item in items if item.text.strip()]
    return found


def written(name: str, items: Items) -> str:
    prefix = name.partition(":")[0]
    kind = "Bag" if name == SUBJECT else "Alt"
    parts = "".join(f"<rdf:li{language_attribute(each)}>{escaped(text)}</rdf:li>" for each, text in items)
    namespaces = f'xmlns:{prefix}="{NAMESPACES[prefix]}" xmlns:rdf="{RDF}"'  # whatever the prefixes mean around it
    return f"<{name} {namespaces}><rdf:{kind}>{parts}</rdf:{kind}></{name}>"


def language_attribute(language: str) -> str:
    return f" xml:lang={quoteattr(language)}" if language else ""


def escaped(text: str) -> str:
    """The text as it stands in XML; characters that XML does not have become U+FFFD."""
    return escape(NOT_XML.sub("\ufffd", text), {"\r": "&#13;"})


def insertion(packet: bytes, rdf: Element, properties: Sequence[str]) -> tuple[int, int, bytes]:
    """Where new properties go: at the end of the first description, or of one of their own about the same resource."""
    text = "".join(f" {each}\n  " for each in properties)
    for description in rdf.children:
        if description.name == f"{RDF} Description" and description.inner_end < description.end:
            return description.inner_end, description.inner_end, text.encode()
    about = rdf.children[0].attributes.get(f"{RDF} about", "") if rdf.children else ""
    text = f'<rdf:Description xmlns:rdf="{RDF}" rdf:about={quoteattr(about)}>\n  {text}</rdf:Description>\n'
    if rdf.inner_end < rdf.end:
        return rdf.inner_end, rdf.inner_end, text.encode()
    name = re.split(rb"[\s/>]", packet[rdf.start + 1 : rdf.end], maxsplit=1)[0]
    return rdf.end - 2, rdf.end, b">" + text.encode() + b"</" + name + b">"


def start_with_space(packet: bytes, element: Element) -> int:
    return len(packet[: element.start].rstrip(b" \t\r\n"))
