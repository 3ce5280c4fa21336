"""Decoded pictures and sounds: what a request brings along besides text, and their identity.

Whoever takes content in decodes it once, within limits; the engine sees pixels and samples only.
So no file format, no metadata and no URL reaches the engine's process, and the same picture has the
same identity whatever file or name it came from.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from .errors import ContractError

#: Bytes of a `content_digest`.
MEDIA_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded picture.

    Attributes:
        width: In pixels, at least 1.
        height: In pixels, at least 1.
        pixels: 8-bit RGB, row by row from the top: `width * height * 3` bytes.

    Raises:
        ContractError: the sizes do not agree.
    """

    kind: ClassVar[str] = "image"

    width: int
    height: int
    pixels: bytes

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1 or len(self.pixels) != self.width * self.height * 3:
            raise ContractError(
                f"an image of {self.width} x {self.height} pixels must have 3 bytes of RGB for "
                f"each pixel, not {len(self.pixels)} bytes in all"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the pixels."""
        return len(self.pixels)

    def content_digest(self) -> bytes:
        """Return the identity of what the picture shows, 32 bytes."""
        return _digest(b"image/rgb8", struct.pack("<QQ", self.width, self.height), self.pixels)


@dataclass(frozen=True, slots=True)
class Audio:
    """A decoded sound of one channel.

    Attributes:
        sample_rate_hz: Samples a second, at least 1.
        samples: Little-endian float32 in [-1, 1], at least one.

    Raises:
        ContractError: there is no sample, a part of one, or no rate.
    """

    kind: ClassVar[str] = "audio"

    sample_rate_hz: int
    samples: bytes

    def __post_init__(self) -> None:
        if self.sample_rate_hz < 1 or not self.samples or len(self.samples) % 4:
            raise ContractError(
                f"a sound must have a rate of at least 1 Hz and whole float32 samples, "
                f"not {self.sample_rate_hz} Hz and {len(self.samples)} bytes"
            )

    @property
    def duration_s(self) -> float:
        """Seconds that the sound lasts."""
        return len(self.samples) / 4 / self.sample_rate_hz

    @property
    def num_bytes(self) -> int:
        """Bytes of the samples."""
        return len(self.samples)

    def content_digest(self) -> bytes:
        """Return the identity of what is heard, 32 bytes."""
        return _digest(b"audio/f32", struct.pack("<Q", self.sample_rate_hz), self.samples)


#: What a request may bring along, in the order of the placeholders of its messages.
Media = Image | Audio
#: Types of the parts of a message's content that stand for a medium.
MEDIA_KINDS: Final = (Image.kind, Audio.kind)
#: Fields of a job whose plans are computed over media too.
MEDIA_SECTIONS: Final = frozenset({"decision", "explain"})
#: Types of parts that bring a medium in any of the forms that producers read, and its kind.
MEDIA_TYPES: Final[Mapping[str, str]] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}


def media_kinds(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the kinds of the placeholders in messages, in the order of their media."""
    contents = (message.get("content") for message in messages)
    parts = (part for content in contents if isinstance(content, Sequence) for part in content)
    kinds = (part.get("type") for part in parts if isinstance(part, Mapping))
    return [kind for kind in kinds if kind in MEDIA_KINDS]


def _digest(*parts: bytes) -> bytes:
    """Hash parts, each preceded by its length, so that no two lists have the same bytes."""
    digest = hashlib.blake2b(digest_size=MEDIA_DIGEST_BYTES)
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()
