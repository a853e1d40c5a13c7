"""What a picture's file says beside its pixels: date, camera and place of EXIF, keywords of XMP and IPTC."""

import html
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

NAMES = ("file.folder", "file.name", "file.gps", "file.keywords", "exif.date", "exif.camera")
DATE = re.compile(r"([12]\d{3})[:-](\d\d)[:-](\d\d)[ T](\d\d:\d\d:\d\d)")
LONGEST_SUBJECT = 20_000  # bytes of XMP
XMP_ITEM = re.compile(rb"<rdf:li[^>]{,100}>([^<]{,1000})</rdf:li>")
XMP_TAG, IPTC_KEYWORDS = 700, (2, 25)


def metadata(content: bytes) -> dict[str, str]:
    """What there is of `exif.date` (ISO 8601), `exif.camera`, `file.gps` (degrees) and `file.keywords`, by name.

    Files that Pillow does not open, and damaged metadata, have none.
    """
    found: dict[str, str] = {}
    with suppress(Exception), Image.open(BytesIO(content)) as image:  # only its head is read
        exif = Image.Image.getexif(image)  # that of PNG would decode the pixels first
        readers: dict[str, Callable[[], str]] = {
            "exif.date": lambda: date_of(exif),
            "exif.camera": lambda: camera_of(exif),
            "file.gps": lambda: place_of(exif.get_ifd(ExifTags.IFD.GPSInfo)),
            "file.keywords": lambda: ", ".join(keywords_of(image, exif)),
        }
        for name, read in readers.items():
            with suppress(Exception):  # of whatever a damaged field raises
                if value := read():
                    found[name] = value
    return found


def date_of(exif: Image.Exif) -> str:
    """When the picture was taken, else when the file was made; empty where neither is known."""
    taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
    found = DATE.match(str(taken or exif.get(ExifTags.Base.DateTime, "")))
    return f"{found[1]}-{found[2]}-{found[3]} {found[4]}" if found else ""


def camera_of(exif: Image.Exif) -> str:
    """Maker and model; most models begin with their maker."""
    maker, model = (str(exif.get(tag, "")).strip(" \0") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    return model if model.lower().startswith(maker.lower()) else f"{maker} {model}".strip()


def place_of(gps: Mapping[int, Any]) -> str:
    """Latitude and longitude in degrees, such as `48.85837, 2.29448`."""
    tags = ExifTags.GPS
    latitude = degrees(gps[tags.GPSLatitude], gps.get(tags.GPSLatitudeRef, "N") == "S")
    longitude = degrees(gps[tags.GPSLongitude], gps.get(tags.GPSLongitudeRef, "E") == "W")
    is_place = math.isfinite(latitude + longitude) and abs(latitude) <= 90 and abs(longitude) <= 180
    return f"{latitude:.5f}, {longitude:.5f}" if is_place else ""


def degrees(parts: tuple[Any, Any, Any], is_negative: bool) -> float:
    value = sum(float(part) / float(60**power) for power, part in enumerate(parts))
    return -value if is_negative else value


def keywords_of(image: ImageFile.ImageFile, exif: Image.Exif) -> list[str]:
    """Those of XMP, then those of IPTC alone."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or exif.get(XMP_TAG) or b""
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    subject = xmp.partition(b"<dc:subject>")[2].partition(b"</dc:subject>")[0][:LONGEST_SUBJECT]
    found = [html.unescape(item.decode("utf-8", "replace")) for item in XMP_ITEM.findall(subject)]
    iptc = (IptcImagePlugin.getiptcinfo(image) or {}).get(IPTC_KEYWORDS, [])
    found += [text_of(item) for item in ([iptc] if isinstance(iptc, bytes) else iptc)]
    return list(dict.fromkeys(keyword.strip() for keyword in found if keyword.strip()))


def text_of(content: bytes) -> str:
    """IPTC is UTF-8 in most files, whatever they say of it, and Latin-1 in old ones."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def place_in_folders(key: str) -> dict[str, str]:
    """The names of an image's folder and of its file, `file.folder` and `file.name`, by its path or address."""
    path = unquote(urlsplit(key).path) if "://" in key else key.replace(os.sep, "/")
    folders, _, file = path.rstrip("/").rpartition("/")
    name, _, ending = file.rpartition(".")
    return {"file.folder": folders.rpartition("/")[2], "file.name": name or ending}
