"""What a file is, told from its first bytes and its name, so that a wrong kind is refused with its right name."""

from pathlib import Path

__all__ = ["EXTENSIONS", "HEAD", "article", "describe", "kind_of_bytes", "kind_of_name"]

HEAD = 512
"""How many bytes of a file `kind_of_bytes` wants to see."""

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".rst", ".jsonl", ".parquet", ".csv"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".g722"),
    "video": (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".y4m", ".ogv"),
}
"""File-name extensions by kind, in lower case."""

_NOUNS = {
    "text": ("a text", "texts"),
    "image": ("a picture", "pictures"),
    "audio": ("a sound recording", "sound recordings"),
    "video": ("a video", "videos"),
    "pair": ("a set of query-document pairs", "query-document pairs"),
    "table": ("a table", "tables"),
}

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF87a", "image"),
    (b"GIF89a", "image"),
    (b"BM", "image"),
    (b"II*\x00", "image"),
    (b"MM\x00*", "image"),
    (b"fLaC", "audio"),
    (b"\x1aE\xdf\xa3", "video"),
    (b"YUV4MPEG2", "video"),
    (b"\x00\x00\x01\xba", "video"),
    (b"\x00\x00\x01\xb3", "video"),
)


def article(kind: str) -> str:
    """The kind with its article, as a person would say it: 'a picture'."""
    return _NOUNS[kind][0]


def describe(kind: str) -> str:
    """The kind in the plural, as a person would say it: 'pictures'."""
    return _NOUNS[kind][1]


def kind_of_name(name: str | Path) -> str | None:
    """The kind that the file name's extension promises, or None."""
    suffix = Path(name).suffix.lower()
    return next((kind for kind, suffixes in EXTENSIONS.items() if suffix in suffixes), None)


def kind_of_bytes(head: bytes) -> str | None:
    """The kind that a file's first bytes (at least `HEAD` of them, if it has so many) give away, or None.

    Knows pictures, sound and video by their signatures; text has none, so text and unknown formats give None.
    """
    if head[:4] == b"RIFF":
        return {b"WEBP": "image", b"WAVE": "audio", b"AVI ": "video"}.get(head[8:12])
    if head[:4] == b"FORM":
        return "audio" if head[8:12] in (b"AIFF", b"AIFC") else None
    if head[:3] == b"ID3" and len(head) > 5 and head[3] < 16 and head[4] < 16:  # a version, not letters
        return "audio"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis", b"heic", b"heix", b"mif1"):
            return "image"
        return "audio" if brand in (b"M4A ", b"M4B ") else "video"
    if head[:4] == b"OggS":
        return "video" if b"theora" in head else "audio"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind if signature != b"BM" or head[6:10] == b"\x00\x00\x00\x00" else None
    # An MPEG audio frame: eleven set bits, then a layer that is not 'reserved'.
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "audio"
    return None
