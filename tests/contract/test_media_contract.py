"""Decoded media: their checks and their identity."""

from __future__ import annotations

import struct

import pytest

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.media import Audio, Image


def test_the_digest_is_of_shape_and_content() -> None:
    wide = Image(width=2, height=1, pixels=b"abcdef")
    tall = Image(width=1, height=2, pixels=b"abcdef")
    other = Image(width=2, height=1, pixels=b"abcdeg")
    sound = Audio(sample_rate_hz=1, samples=b"abcd")
    faster = Audio(sample_rate_hz=2, samples=b"abcd")
    digests = {item.content_digest() for item in (wide, tall, other, sound, faster)}
    assert len(digests) == 5
    assert wide.content_digest() == Image(width=2, height=1, pixels=b"abcdef").content_digest()


@pytest.mark.parametrize(
    ("width", "height", "num_bytes"), [(0, 1, 0), (1, 0, 0), (2, 2, 11), (2, 2, 16), (-1, -1, 3)]
)
def test_an_image_whose_sizes_disagree_is_refused(width: int, height: int, num_bytes: int) -> None:
    with pytest.raises(ContractError, match="3 bytes of RGB"):
        Image(width=width, height=height, pixels=bytes(num_bytes))


@pytest.mark.parametrize(("rate_hz", "num_bytes"), [(0, 4), (16000, 0), (16000, 6)])
def test_a_sound_without_whole_samples_is_refused(rate_hz: int, num_bytes: int) -> None:
    with pytest.raises(ContractError, match="whole float32 samples"):
        Audio(sample_rate_hz=rate_hz, samples=bytes(num_bytes))


def test_a_sound_knows_its_length() -> None:
    sound = Audio(sample_rate_hz=4, samples=struct.pack("<2f", 0.0, 1.0))
    assert sound.duration_s == 0.5
