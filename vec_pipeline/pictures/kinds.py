"""Which files are pictures, and of which kind: by their suffix, and by their first bytes."""

import re

HEAD_BYTES = 256  # enough to tell the kind of any file but an SVG that begins with a long comment

# Camera RAW files; most of them are TIFF files whose first page is a thumbnail.
RAW_SUFFIXES = frozenset(".cr2 .cr3 .nef .nrw .arw .sr2 .dng .orf .rw2 .raf .pef .srw".split())
SUFFIXES = RAW_SUFFIXES | frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .hif .jp2 .j2k .j2c .jpx "
    ".jpf .jxl .tga .ppm .pgm .pbm .pnm .pam .pfm .ico .cur .icns .psd .psb .svg .svgz .pcx .qoi .dds .sgi .xbm "
    ".xpm".split()
)
# Common neighbours of pictures, whose content is not looked at: a data set has a text file beside each picture.
OTHER_SUFFIXES = frozenset(
    ".txt .md .csv .tsv .json .jsonl .xml .xmp .html .htm .css .js .py .sh .yaml .yml .toml .ini .log .sqlite .db .npy "
    ".npz .pt .safetensors .parquet .pdf .doc .docx .xls .xlsx .ppt .pptx .zip .tar .gz .tgz .7z .rar .mp4 .mov .m4v "
    ".avi .mkv .webm .mts .3gp .mp3 .m4a .wav .flac .ogg .exe .dll .so .pyc .thm .aae .lrcat .part "
    ".crdownload .partial .filepart .download".split()
)

SIGNATURES: tuple[tuple[str, int, bytes], ...] = (  # kind, offset, bytes
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("GIF", 0, b"GIF87a"),
    ("GIF", 0, b"GIF89a"),
    ("RAW", 8, b"CR\x02"),  # CR2, before TIFF
    ("RAW", 0, b"FUJIFILMCCD-RAW"),
    ("RAW", 0, b"IIRO"),  # ORF
    ("RAW", 0, b"IIRS"),
    ("RAW", 0, b"MMOR"),
    ("RAW", 0, b"IIU\0"),  # RW2
    ("RAW", 4, b"ftypcrx "),  # CR3
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("JPEG2000", 0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG2000", 0, b"\xff\x4f\xff\x51"),
    ("JXL", 0, b"\xff\x0a"),
    ("JXL", 0, b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("PSD", 0, b"8BPS\0\1"),
    ("PSD", 0, b"8BPS\0\2"),
    ("ICNS", 0, b"icns"),
    ("QOI", 0, b"qoif"),
    ("DDS", 0, b"DDS "),
    ("SGI", 0, b"\x01\xda\0\1"),
    ("SGI", 0, b"\x01\xda\1\1"),
    ("SUN", 0, b"\x59\xa6\x6a\x95"),
    ("DCX", 0, b"\xb1\x68\xde\x3a"),
    ("FITS", 0, b"SIMPLE  ="),
    ("HDR", 0, b"#?RADIANCE\n"),
    ("HDR", 0, b"#?RGBE\n"),
)
PATTERNS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    (
        "HEIF",
        re.compile(rb"....ftyp(?:hei[cxms]|hev[cxms]|mif[123]|miaf|msf1|avi[fs]|avc[is]|j2k[is]|jpeg)", re.DOTALL),
    ),
    ("BMP", re.compile(rb"BM.{12}[\x0c-\x7c]\0\0\0", re.DOTALL)),
    ("ICO", re.compile(rb"\0\0[\x01\x02]\0[\x01-\x40]\0...\0", re.DOTALL)),
    ("PCX", re.compile(rb"\n[\0\x02\x03\x05]\x01[\x01\x02\x04\x08]", re.DOTALL)),
    ("PPM", re.compile(rb"P[1-6f]\s+(?:#|-?\d)")),
    ("SVG", re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*|<!--.*|<!DOCTYPE\s+svg.*)?<(?:svg:)?svg[\s>]", re.DOTALL)),
    ("PAM", re.compile(rb"P7\n(?:#|[A-Z])|PF\s+\d")),
    ("XPM", re.compile(rb"/\* XPM \*/")),
)
TGA = re.compile(rb".(?:\x01[\x01\x09]|[\0\x01][\x02\x03\x0a\x0b]).{13}[\x08\x0f\x10\x18\x20][\0-\x3f]", re.DOTALL)
GZIP = b"\x1f\x8b"


def kind_of(head: bytes, *, with_tga: bool = False) -> str:
    """The kind of picture that a file with these first bytes is, by Pillow's name where Pillow reads it; or empty.

    HEIF is AVIF too.
    with_tga: what is no other kind may be a TGA file, which has no signature; without it, only a suffix tells one.
    """
    for kind, offset, signature in SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    kind = next((kind for kind, pattern in PATTERNS if pattern.match(head)), "")
    return "TGA" if not kind and with_tga and TGA.match(head) else kind
