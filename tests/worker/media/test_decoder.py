"""Decoding in processes of their own: good files, and hostile ones, each of which fails alone."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image as PillowImage

from batchmill.engine.contract.media import Audio, Image
from batchmill.worker.media import decode_process as process
from batchmill.worker.media import decoder as decoder_module
from batchmill.worker.media.decoder import DecodeLimits, MediaDecoder
from batchmill.worker.media.errors import INVALID, TOO_LARGE, UNAVAILABLE, MediaError

LIMITS = DecodeLimits(max_pixels=1_000_000, max_audio_s=2.0, timeout_s=10.0, memory_bytes=1 << 29)


@pytest.fixture(scope="module")
def decoder() -> Iterator[MediaDecoder]:
    decoder = MediaDecoder(LIMITS, num_processes=1)
    yield decoder
    decoder.close()


def picture(
    mode: str = "RGB", size: tuple[int, int] = (3, 2), form: str = "PNG", **how: Any
) -> bytes:
    target = io.BytesIO()
    image = PillowImage.new(mode, size)
    image.paste(PillowImage.new(mode, (1, 1), how.pop("first", 0)), (0, 0))
    image.save(target, form, **how)
    return target.getvalue()


def sound(num_frames: int = 800, rate: int = 8000, channels: int = 1, form: str = "WAV") -> bytes:
    target = io.BytesIO()
    wave = np.linspace(-0.5, 0.5, max(num_frames, 1), dtype="f4")[:num_frames]
    soundfile.write(target, np.stack([wave] * channels, axis=1), rate, format=form)
    return target.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header says a size, with any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF"])
def test_a_picture_becomes_rows_of_rgb(decoder: MediaDecoder, form: str) -> None:
    found = decoder.decode(picture(form=form, first=(255, 0, 0), lossless=True), "image")
    assert isinstance(found, Image)
    assert (found.width, found.height) == (3, 2)
    assert found.pixels == b"\xff\0\0" + bytes(15)


def test_orientation_is_applied_and_metadata_changes_nothing(decoder: MediaDecoder) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = picture(form="JPEG", size=(30, 20), exif=exif)
    found = decoder.decode(turned, "image")
    assert isinstance(found, Image)
    assert (found.width, found.height) == (20, 30)
    plain, noted = picture(), picture(exif=PillowImage.Exif(), dpi=(300, 300))
    assert plain != noted
    digests = {decoder.decode(each, "image").content_digest() for each in (plain, noted)}
    assert len(digests) == 1


def test_transparency_becomes_white_and_the_first_frame_counts(decoder: MediaDecoder) -> None:
    found = decoder.decode(picture("RGBA", first=(0, 0, 0, 255)), "image")
    assert isinstance(found, Image)
    assert found.pixels == b"\0\0\0" + b"\xff" * 15
    frames = [PillowImage.new("RGB", (2, 2), color) for color in ("red", "blue")]
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:])
    first = decoder.decode(target.getvalue(), "image")
    assert isinstance(first, Image)
    assert first.pixels == b"\xff\0\0" * 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16"])
def test_other_modes_become_rgb(decoder: MediaDecoder, mode: str) -> None:
    found = decoder.decode(picture(mode), "image")
    assert isinstance(found, Image)
    assert len(found.pixels) == 18


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_sound_becomes_samples_of_one_channel(decoder: MediaDecoder, form: str) -> None:
    found = decoder.decode(sound(8000, channels=2, form=form), "audio")
    assert isinstance(found, Audio)
    assert found.sample_rate_hz == 8000
    assert found.duration_s == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    ("content", "kind", "code", "words"),
    [
        pytest.param(b"", "image", INVALID, "empty", id="empty"),
        pytest.param(b"<svg xmlns='x'/>", "image", INVALID, "PNG, JPEG", id="svg"),
        pytest.param(picture(size=(99, 99))[:80], "image", INVALID, "damaged", id="truncated"),
        pytest.param(
            png_of_size(900, 900, bytes(99)), "image", INVALID, "damaged", id="lying-header"
        ),
        pytest.param(
            png_of_size(100_000, 100_000),
            "image",
            TOO_LARGE,
            "BATCHMILL_MEDIA_MAX_PIXELS",
            id="100000-by-100000",
        ),
        pytest.param(
            picture("1", (2000, 2000)), "image", TOO_LARGE, "2000 x 2000 pixels", id="bomb"
        ),
        pytest.param(b"GIF89a<script>alert(1)</script>", "image", INVALID, "", id="polyglot-gif"),
        pytest.param(b"RIFF\xff\xff\xff\xffWAVE", "audio", INVALID, "", id="no-format"),
        pytest.param(sound(0), "audio", INVALID, "no samples", id="no-samples"),
        pytest.param(
            sound(8000 * 3), "audio", TOO_LARGE, "BATCHMILL_MEDIA_MAX_AUDIO_S", id="too-long"
        ),
        pytest.param(sound(rate=1000), "audio", TOO_LARGE, "1000 samples a second", id="rate"),
        pytest.param(sound(channels=9), "audio", TOO_LARGE, "9 channels", id="channels"),
    ],
)
def test_a_bad_file_fails_alone(
    decoder: MediaDecoder, content: bytes, kind: str, code: str, words: str
) -> None:
    with pytest.raises(MediaError) as refusal:
        decoder.decode(content, kind)
    assert refusal.value.code == code
    assert words in str(refusal.value)
    assert isinstance(decoder.decode(picture(), "image"), Image)


def test_a_polyglot_is_decoded_as_the_picture_that_it_is(decoder: MediaDecoder) -> None:
    plain = picture(first=(1, 2, 3))
    both = plain + b"PK\x03\x04<script>alert(1)</script>"
    found = decoder.decode(both, "image")
    assert found.content_digest() == decoder.decode(plain, "image").content_digest()


def test_time_and_memory_are_limited_and_the_next_file_is_decoded() -> None:
    large = picture(size=(9000, 9000))
    slow = MediaDecoder(DecodeLimits(10**8, 1.0, 0.05, 1 << 31), num_processes=1)
    small = MediaDecoder(DecodeLimits(10**8, 1.0, 10.0, 1 << 28), num_processes=1)
    for each, setting in ((slow, "TIMEOUT_S"), (small, "MEMORY_BYTES")):
        with pytest.raises(MediaError, match=f"BATCHMILL_MEDIA_DECODE_{setting}") as refusal:
            each.decode(large, "image")
        assert refusal.value.code == TOO_LARGE
    assert isinstance(small.decode(picture(), "image"), Image)
    for each in (slow, small):
        each.close()


@pytest.fixture
def change_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """A function that changes a line of the program which decodes."""

    def change(line: str, other: str) -> None:
        text = Path(process.__file__).read_text()
        assert text.count(line) == 1
        program = tmp_path / "changed.py"
        program.write_text(text.replace(line, other))
        monkeypatch.setattr(process, "__file__", str(program))

    return change


HUGE_BODY = "connection.sendall(_HEADER.pack(2, 1 << 60) + b'{}')"


@pytest.mark.parametrize(
    "act", [pytest.param("os.abort()", id="crash"), pytest.param(HUGE_BODY, id="huge-reply")]
)
def test_content_that_takes_over_its_process_fails_alone(
    change_program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr(decoder_module, "_GRACE_S", 0.5)
    change_program(
        "        reply = _reply(order)\n",
        f"        reply = _reply(order)\n        if reply.head.get('width') == 7: {act}\n",
    )
    hostile = MediaDecoder(LIMITS, num_processes=1)
    with pytest.raises(MediaError, match="ended the process") as refusal:
        hostile.decode(picture(size=(7, 1)), "image")
    assert refusal.value.code == INVALID
    assert isinstance(hostile.decode(picture(), "image"), Image)
    hostile.close()


def test_processes_that_end_between_files_fail_none(
    change_program: Callable[[str, str], None],
) -> None:
    """Each ends after a large picture; the next file must not find the ends of two in a row."""
    change_program("_KEPT_MEMORY_KB = 256 << 10", "_KEPT_MEMORY_KB = 0")
    ending = MediaDecoder(LIMITS, num_processes=2)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: ending.decode(picture(), "image"), range(6)):
            assert isinstance(found, Image)
    assert isinstance(ending.decode(picture(), "image"), Image)
    ending.close()


def test_a_process_that_does_not_start_is_not_the_fault_of_its_content(
    change_program: Callable[[str, str], None],
) -> None:
    change_program("    parent_pid = os.getppid()\n", "    raise SystemExit(3)\n")
    broken = MediaDecoder(LIMITS, num_processes=1)
    with pytest.raises(OSError, match="did not start"):
        broken.decode(picture(), "image")
    broken.close()


def test_a_worker_without_the_packages_names_the_command(
    decoder: MediaDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "find_spec", lambda name: None)
    with pytest.raises(MediaError, match=r"lacks PIL: pip install .*\[media\]") as refusal:
        decoder.decode(picture(), "image")
    assert refusal.value.code == UNAVAILABLE
