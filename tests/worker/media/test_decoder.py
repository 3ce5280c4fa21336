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
from batchmill.engine.media.sounds import at_rate
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


def sound(
    num_frames: int = 800,
    rate: int = 8000,
    channels: int = 1,
    form: str = "WAV",
    value: float | None = None,
) -> bytes:
    target = io.BytesIO()
    wave = np.linspace(-0.5, 0.5, max(num_frames, 1), dtype="f4")[:num_frames]
    if value is not None:
        wave[:] = value
    subtype = None if value is None else "FLOAT"
    soundfile.write(target, np.stack([wave] * channels, axis=1), rate, subtype, format=form)
    return target.getvalue()


def noise(form: str, **how: Any) -> bytes:
    target = io.BytesIO()
    PillowImage.effect_noise((64, 64), 90).convert("RGB").save(target, form, **how)
    return target.getvalue()


def zipped_text() -> bytes:
    """Return a PNG with a text that takes 64 MiB when it is unpacked."""
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20)))
    small = png_of_size(1, 1, b"\0abc")
    at = small.index(b"IDAT") - 4
    return small[:at] + text + small[at:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header says a size, with any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def with_field(content: bytes, mark: bytes, offset: int, form: str, value: int) -> bytes:
    """Return a file with another number at an offset from the end of a mark."""
    at = content.index(mark) + len(mark) + offset
    data = bytearray(content)
    struct.pack_into(form, data, at, value)
    return bytes(data)


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


def wide(value: int, **how: Any) -> bytes:
    """Return a PNG with 16 bits of grey."""
    target = io.BytesIO()
    PillowImage.fromarray(np.full((2, 3), value, dtype=np.uint16)).save(target, "PNG", **how)
    return target.getvalue()


RED_AND_BLUE = [PillowImage.new("RGB", (3, 2), color) for color in ("red", "blue")]


def frames(form: str, **how: Any) -> bytes:
    target = io.BytesIO()
    first, *others = RED_AND_BLUE
    first.save(target, form, save_all=True, append_images=others, **how)
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "pixel"),
    [
        pytest.param(frames("PNG"), b"\xff\0\0", id="animated-png"),
        pytest.param(frames("WEBP", lossless=True), b"\xff\0\0", id="animated-webp"),
        pytest.param(frames("MPO"), b"\xfe\0\0", id="mpo"),
        pytest.param(picture("CMYK", form="JPEG"), b"\xff\xff\xff", id="cmyk"),
        pytest.param(wide(65_535), b"\xff\xff\xff", id="16-bits"),
        pytest.param(wide(7, transparency=7), b"\xff\xff\xff", id="16-bits-transparent"),
        pytest.param(wide(7 << 8, transparency=7), b"\7\7\7", id="16-bits-opaque"),
        pytest.param(picture("1"), b"\0\0\0", id="1-bit"),
        pytest.param(picture("P", transparency=0), b"\xff\xff\xff", id="palette-transparent"),
        pytest.param(picture("L", transparency=0), b"\xff\xff\xff", id="grey-transparent"),
        pytest.param(picture(size=(1, 100_000)), b"\0\0\0", id="1-by-100000"),
    ],
)
def test_unusual_pictures_become_rgb(decoder: MediaDecoder, content: bytes, pixel: bytes) -> None:
    found = decoder.decode(content, "image")
    assert isinstance(found, Image)
    assert found.pixels[-3:] == pixel


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, 0), (2, 1), (3, 3), (4, 2), (5, 0), (6, 1), (7, 3), (8, 2), (9, 0)],
)
def test_each_orientation_turns_the_corner(
    decoder: MediaDecoder, orientation: int, corner: int
) -> None:
    """A black corner at the top left; corners of the result are counted row by row."""
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    target = io.BytesIO()
    image = PillowImage.new("RGB", (32, 16), "white")
    image.paste((0, 0, 0), (0, 0, 8, 8))
    image.save(target, "JPEG", exif=exif, quality=100)
    found = decoder.decode(target.getvalue(), "image")
    assert isinstance(found, Image)
    assert (found.width > found.height) == (orientation not in (5, 6, 7, 8))
    pixels = np.frombuffer(found.pixels, np.uint8).reshape(found.height, found.width, 3)
    corners = [pixels[y, x].max() for y in (0, -1) for x in (0, -1)]
    assert int(np.argmin(corners)) == corner


@pytest.mark.parametrize(
    ("content", "num_samples"),
    [
        pytest.param(with_field(sound(), b"data", 0, "<I", 2**32 - 16), 800, id="lying-data"),
        pytest.param(with_field(sound(), b"RIFF", 0, "<I", 10), 800, id="lying-riff"),
        pytest.param(sound(channels=8), 800, id="8-channels"),
    ],
)
def test_a_sound_has_the_samples_that_are_there(
    decoder: MediaDecoder, content: bytes, num_samples: int
) -> None:
    found = decoder.decode(content, "audio")
    assert isinstance(found, Audio)
    assert len(found.samples) == 4 * num_samples


def test_a_sound_is_resampled_where_it_is_decoded(decoder: MediaDecoder) -> None:
    own = decoder.decode(sound(), "audio")
    found = decoder.decode(sound(), "audio", rate_hz=16_000)
    assert isinstance(own, Audio)
    assert isinstance(found, Audio)
    assert (found.sample_rate_hz, len(found.samples)) == (16_000, 4 * 1600)
    assert found == at_rate(own, 16_000)
    assert decoder.decode(sound(), "audio", rate_hz=8000) == own


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
            noise("JPEG", progressive=True)[:400], "image", INVALID, "", id="progressive-truncated"
        ),
        pytest.param(picture(form="TIFF"), "image", INVALID, "no format that is read", id="tiff"),
        pytest.param(picture(form="ICO"), "image", INVALID, "no format that is read", id="ico"),
        pytest.param(png_of_size(0, 5), "image", INVALID, "", id="no-width"),
        pytest.param(zipped_text(), "image", INVALID, "damaged", id="text-bomb"),
        pytest.param(
            with_field(sound(), b"fmt ", 6, "<H", 0), "audio", INVALID, "", id="no-channels"
        ),
        pytest.param(
            sound(form="WAV", value=np.nan), "audio", INVALID, "not numbers", id="nan-samples"
        ),
        pytest.param(sound(8000, form="FLAC")[:999], "audio", INVALID, "", id="flac-truncated"),
        pytest.param(sound(8000, form="OGG")[:999], "audio", INVALID, "", id="ogg-truncated"),
        pytest.param(sound(8000, form="MP3")[:50], "audio", INVALID, "", id="mp3-truncated"),
        pytest.param(b"ID3\4\0\0\x7f\x7f\x7f\x7f", "audio", INVALID, "", id="mp3-lying-tag"),
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
