"""XMP in JPEG and PNG files: where it is, and the change that puts another packet there; all else stays as it is."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import takewhile
from typing import NamedTuple

from PIL import Image

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
APP0, APP1, APP2, APP11, START_OF_SCAN, END_OF_IMAGE = 0xE0, 0xE1, 0xE2, 0xEB, 0xDA, b"\xff\xd9"
JPEG_XMP, EXTENSION = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
MAKER_NOTE = (b"\x92\x7c", b"\x7c\x92")  # its tag in Exif, in both byte orders
PNG_XMP, OLD_PNG_XMP = b"XML:com.adobe.xmp\0", b"Raw profile type xmp\0"
MOST_IN_JPEG = 65_502  # bytes of a packet, as part 3 of the specification of XMP says
MOST_IN_PNG = 1 << 24  # bytes of a compressed packet that is there
MPF, MP_ENTRIES, MP_ENTRY_BYTES = b"MPF\0", 0xB002, 16  # the index of a file of several JPEGs (CIPA DC-007)


class LeftToSidecar(Exception):  # noqa: N818 (it says what happened)
    """Why nothing is written into a picture, as the end of `1 picture ...`."""


class BrokenPicture(Exception):  # noqa: N818 (it says what happened)
    """A picture that cannot be decoded, or whose file is not built as its kind says."""


class Splice(NamedTuple):
    """A change of a file: the bytes from `start` to `end` become `data`."""

    start: int
    end: int
    data: bytes

    def applied(self, content: bytes) -> bytes:
        return content[: self.start] + self.data + content[self.end :]

    def reverse(self, content: bytes) -> "Splice":
        """What takes the changed file back to `content`."""
        return Splice(self.start, self.start + len(self.data), content[self.start : self.end])


class Slot(NamedTuple):
    """Where the packet of a file is, with what is around it; where it would go if `start` is `end`.

    size_at, order: in a file of several JPEGs, where the size of the first one is, as 4 bytes in this order; else 0.
    """

    start: int
    end: int
    packet: bytes = b""
    size_at: int = 0
    order: str = ">"

    def without(self, content: bytes) -> bytes:
        """The bytes of a file that another packet leaves as they are."""
        rest = content[: self.start] + content[self.end :]
        size_at = self.size_at - (self.end - self.start)
        return rest[:size_at] + rest[size_at + 4 :] if self.size_at else rest


class Part(NamedTuple):
    """A segment of a JPEG or a chunk of a PNG. kind: its marker or its name. data: where what it holds begins."""

    kind: int | bytes
    start: int
    data: int
    end: int


def slot_of(content: bytes) -> Slot:
    """Raises LeftToSidecar and BrokenPicture."""
    if content.startswith(JPEG):
        return jpeg_slot(content)
    if content.startswith(PNG):
        return png_slot(content)
    raise LeftToSidecar("of another kind than JPEG and PNG")


def splice_of(content: bytes, slot: Slot, packet: bytes) -> Splice:
    """The change that puts a packet into its slot. Raises LeftToSidecar."""
    is_jpeg = content.startswith(JPEG)
    if is_jpeg and len(packet) > MOST_IN_JPEG:
        raise LeftToSidecar("with more than 64 kB of XMP")
    data = segment(packet) if is_jpeg else chunk(packet)
    end = slot.end
    if slot.size_at:
        [size] = struct.unpack_from(f"{slot.order}I", content, slot.size_at)
        size += len(data) - (slot.end - slot.start)
        data += content[slot.end : slot.size_at] + struct.pack(f"{slot.order}I", size)
        end = slot.size_at + 4
    return Splice(slot.start, end, data)


def check(before: bytes, after: bytes) -> None:
    """Raise BrokenPicture where two files differ in more than their packets, or the second cannot be decoded."""
    if slot_of(before).without(before) != slot_of(after).without(after):
        raise BrokenPicture
    decode(after)


def decode(content: bytes) -> None:
    """Raises BrokenPicture where that fails."""
    try:
        with Image.open(BytesIO(content)) as image:
            image.draft(None, (1, 1))  # a JPEG: all its data is read, and an eighth of each side computed
            image.load()
    except Exception:  # of any decoder
        raise BrokenPicture from None


# --- JPEG


def segments(content: bytes) -> Iterator[Part]:
    """The segments up to the first that compressed data follows, which is the last one. Raises BrokenPicture."""
    place, marker = 2, 0
    while marker != START_OF_SCAN:
        while content[place : place + 2] == b"\xff\xff":  # fill bytes
            place += 1
        if content[place : place + 1] != b"\xff" or len(content) < place + 4:
            raise BrokenPicture
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        yield Part(marker, place, place + 4, place + 2 + length)
        place += 2 + length


def jpeg_slot(content: bytes) -> Slot:
    parts = list(segments(content))

    def found(kind: int, start: bytes) -> list[Part]:
        return [each for each in parts if each.kind == kind and content.startswith(start, each.data)]

    if any(b"c2pa" in content[each.data : each.end] for each in parts if each.kind == APP11):
        raise LeftToSidecar("with content credentials, which a change would make invalid")
    packets, exif = found(APP1, JPEG_XMP), found(APP1, b"Exif\0")
    if found(APP1, EXTENSION) or len(packets) > 1:
        raise LeftToSidecar("with XMP in several segments")
    if packets:
        packet = content[packets[0].data + len(JPEG_XMP) : packets[0].end].rstrip(b"\0")  # Apple's ends with one
        slot = Slot(packets[0].start, packets[0].end, packet)
    else:
        first = [2, *(each.end for each in takewhile(lambda each: each.kind == APP0 or each in exif, parts))]
        slot = Slot(first[-1], first[-1])
    rest = content[parts[-1].end :].partition(END_OF_IMAGE)[2]
    if index := found(APP2, MPF):
        if slot.start > index[0].start:  # offsets count from there
            raise LeftToSidecar("with several pictures and XMP after their index")
        size_at, order = size_of_first(content, index[0])
        return slot._replace(size_at=size_at, order=order)
    has_maker_note = any(tag in content[each.data : each.end] for each in exif for tag in MAKER_NOTE)
    if rest.strip(b"\0") and has_maker_note:  # which may say where that begins, counted from the Exif
        raise LeftToSidecar("with data of the camera after the picture")
    return slot


def size_of_first(content: bytes, index: Part) -> tuple[int, str]:
    """Where the size of the first of several JPEGs is, and in which byte order."""
    start = index.data + len(MPF)
    order = ">" if content.startswith(b"MM", start) else "<"
    try:
        [table] = struct.unpack_from(f"{order}I", content, start + 4)
        [number] = struct.unpack_from(f"{order}H", content, start + table)
        for entry in range(min(number, 100)):
            tag, _, length, value = struct.unpack_from(f"{order}HHII", content, start + table + 2 + 12 * entry)
            place = start + value
            if tag == MP_ENTRIES and length >= MP_ENTRY_BYTES and place + MP_ENTRY_BYTES <= index.end:
                return place + 4, order
    except struct.error:
        pass
    raise LeftToSidecar("with several pictures whose index cannot be read")


def segment(packet: bytes) -> bytes:
    data = JPEG_XMP + packet
    return struct.pack(">BBH", 0xFF, APP1, 2 + len(data)) + data


# --- PNG


def chunks(content: bytes) -> Iterator[Part]:
    """The chunks, up to the last. Raises BrokenPicture."""
    place, kind = len(PNG), b""
    while kind != b"IEND":
        if len(content) < place + 12:
            raise BrokenPicture
        kind, end = content[place + 4 : place + 8], place + 12 + int.from_bytes(content[place : place + 4], "big")
        yield Part(kind, place, place + 8, end)
        place = end


def png_slot(content: bytes) -> Slot:
    parts = list(chunks(content))
    texts = [each for each in parts if each.kind in (b"iTXt", b"tEXt", b"zTXt")]
    packets = [each for each in texts if content.startswith(PNG_XMP, each.data)]
    if any(each.kind == b"caBX" for each in parts):
        raise LeftToSidecar("with content credentials, which a change would make invalid")
    if len(packets) > 1 or any(content.startswith(OLD_PNG_XMP, each.data) for each in texts):
        raise LeftToSidecar("with XMP in several chunks")
    if packets:
        return Slot(packets[0].start, packets[0].end, packet_of(content[packets[0].data : packets[0].end - 4]))
    place = next((each.end for each in parts if each.kind == b"IHDR"), 0)
    if not place:
        raise BrokenPicture
    return Slot(place, place)


def packet_of(data: bytes) -> bytes:
    """The text of an iTXt chunk, after its keyword, two bytes, a language and a translated keyword."""
    is_compressed = data[len(PNG_XMP) : len(PNG_XMP) + 1] == b"\1"
    text = data[len(PNG_XMP) + 2 :].partition(b"\0")[2].partition(b"\0")[2]
    if not is_compressed:
        return text
    try:
        decompressor = zlib.decompressobj()
        packet = decompressor.decompress(text, MOST_IN_PNG)
    except zlib.error:
        raise BrokenPicture from None
    if not decompressor.eof:
        raise LeftToSidecar("with XMP that is too large")
    return packet


def chunk(packet: bytes) -> bytes:
    data = b"iTXt" + PNG_XMP + bytes(4) + packet  # not compressed, no language, no translated keyword
    return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
