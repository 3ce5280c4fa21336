"""The formats of pictures and sounds, told by their first bytes and never by a name."""

from __future__ import annotations

from typing import Final

#: What each kind may be in, for messages.
FORMATS: Final = {
    "image": "PNG, JPEG, WebP or GIF",
    "audio": "WAV, FLAC, Ogg or MP3",
}
_STARTS: Final = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"ID3", "MP3"),
)
_RIFF_KINDS: Final = {b"WEBP": "WEBP", b"WAVE": "WAV"}
_IMAGES: Final = frozenset({"PNG", "JPEG", "GIF", "WEBP"})
#: A frame of MPEG audio begins with eleven set bits, two of its version and two of its layer.
_MPEG_SYNC: Final = 0xFFE0
_MPEG_LAYER: Final = 0x0006
_LAYER_3: Final = 0x0002


def format_of(content: bytes) -> str | None:
    """Return the format of a picture or a sound; None for any other content."""
    for start, name in _STARTS:
        if content.startswith(start):
            return name
    if content[:4] == b"RIFF":
        return _RIFF_KINDS.get(content[8:12])
    first = int.from_bytes(content[:2], "big")
    if len(content) > 1 and first & _MPEG_SYNC == _MPEG_SYNC and first & _MPEG_LAYER == _LAYER_3:
        return "MP3"
    return None


def kind_of(content: bytes) -> str | None:
    """Return `image` or `audio`; None for content of any other format."""
    name = format_of(content)
    if name is None:
        return None
    return "image" if name in _IMAGES else "audio"


def check_kind(content: bytes, kind: str) -> None:
    """Check that content is what it is said to be.

    Raises:
        ValueError: it is empty, or in no format of this kind.
    """
    if not content:
        raise ValueError("is empty")
    found = kind_of(content)
    if found is None:
        raise ValueError(f"is in no format that is read: send {FORMATS[kind]}")
    if found != kind:
        raise ValueError(f"is of the kind {found}, but the part is of the kind {kind}")
