"""The program of a process that decodes: one picture or sound after another, each within limits.

`decoder.py` starts it as `python -I -S decode_process.py MEMORY_BYTES FOLDER…`, with a socket as
its standard input. It imports the standard library only, and from the folders Pillow for a picture,
and soundfile, numpy and soxr for a sound. Content that takes too long ends this process by a
signal, and so does content that crashes a library.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NamedTuple

#: How often an idle process looks whether its parent lives.
_PARENT_CHECK_S = 2.0
#: After a picture or sound that took more memory, a new process takes the next.
_KEPT_MEMORY_KB = 256 << 10
_HEADER = struct.Struct("!IQ")
_RECEIVE_BYTES = 1 << 20
_MAX_HEAD_BYTES = 64 << 10
#: Pillow's names of the formats that are read; a GIF or WebP with several frames gives its first.
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
#: libsndfile's names.
_AUDIO_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
_MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
_MAX_CHANNELS = 8
_FRAMES_PER_BLOCK = 1 << 16
_ORIENTATION_TAG = 0x0112


class Refused(Exception):
    """Content that is not decoded: the text says why.

    Attributes:
        kind: `invalid`, `limit` of the settings, or `range` of what is read at all.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Message(NamedTuple):
    """What goes over the socket: a JSON object, and bytes."""

    head: dict[str, Any]
    body: bytes


def send_message(connection: socket.socket, head: dict[str, Any], body: bytes = b"") -> None:
    """Send a message."""
    data = json.dumps(head).encode()
    connection.sendall(_HEADER.pack(len(data), len(body)) + data)
    connection.sendall(body)


def receive_message(
    connection: socket.socket, *, max_body_bytes: int | None = None, until: float | None = None
) -> Message:
    """Return the next message.

    Args:
        connection: to the other process.
        max_body_bytes: the other end is not trusted to send less; None takes any.
        until: `time.monotonic()` at which waiting ends, however little arrives before; None waits.

    Raises:
        EOFError: the other end is closed, or sends more than it may.
        TimeoutError: the time is over.
    """
    num_head, num_body = _HEADER.unpack(_receive(connection, _HEADER.size, until))
    if num_head > _MAX_HEAD_BYTES or (max_body_bytes is not None and num_body > max_body_bytes):
        raise EOFError
    head = json.loads(_receive(connection, num_head, until))
    return Message(head, bytes(_receive(connection, num_body, until)))


def _receive(connection: socket.socket, num_bytes: int, until: float | None) -> bytearray:
    data = bytearray(num_bytes)
    view, at = memoryview(data), 0
    while at < num_bytes:
        if until is not None:
            connection.settimeout(max(until - time.monotonic(), 0.001))
        num_read = connection.recv_into(view[at:], min(num_bytes - at, _RECEIVE_BYTES))
        if not num_read:
            raise EOFError
        at += num_read
    return data


def main(arguments: list[str]) -> None:
    """Decode until the parent closes the socket or dies.

    Args:
        arguments: the limit of memory in bytes, and the folders of packages.
    """
    parent_pid = os.getppid()
    connection = socket.socket(fileno=0)
    _prepare_signals()
    sys.path += arguments[1:]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)  # a library has nothing to write
    _limit(resource.RLIMIT_AS, int(arguments[0]))
    send_message(connection, {"ready": True})
    first_kb, is_last = _memory_kb(), False
    while not is_last:
        while not select.select([connection], [], [], _PARENT_CHECK_S)[0]:
            if os.getppid() != parent_pid:
                return
        try:
            order = receive_message(connection)
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, order.head["timeout_s"])
        signal.setitimer(signal.ITIMER_REAL, order.head["timeout_s"])
        reply = _reply(order)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        # The parent must know: this end may not be taken for that of its next content.
        is_last = _memory_kb() - first_kb >= _KEPT_MEMORY_KB
        send_message(connection, {**reply.head, "is_last": is_last}, reply.body)


def _prepare_signals() -> None:
    # The parent decides when this process ends, not a Ctrl-C in the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending = (signal.SIGPROF, signal.SIGALRM, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)
    for number in ending:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (soft, hard))


def _memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reply(order: Message) -> Message:
    """Return `width` and `height`, or `rate_hz`, with the decoded bytes; or `problem` and `why`."""
    decode = _decode_image if order.head["kind"] == "image" else _decode_audio
    try:
        return decode(order.body, order.head)
    except MemoryError:
        return Message({"problem": "memory", "why": ""}, b"")
    except Refused as refusal:
        return Message({"problem": refusal.kind, "why": str(refusal)}, b"")
    except ImportError as error:
        return Message({"problem": "import", "why": str(error)[:200]}, b"")
    except Exception as error:
        # Of a library: what it says may quote the content, so only the kind of error is told.
        why = f"is damaged, and cannot be read ({type(error).__name__})"
        return Message({"problem": "invalid", "why": why}, b"")


def _decode_image(content: bytes, limits: dict[str, Any]) -> Message:
    """Return RGB pixels: the first frame, upright, on white where it is transparent."""
    from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

    max_pixels = limits["max_pixels"]
    Image.MAX_IMAGE_PIXELS = None  # checked here, before anything is decoded
    try:
        image: Any = Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS)
    except UnidentifiedImageError:
        raise Refused("invalid", "is not PNG, JPEG, WebP or GIF, or is damaged") from None
    width, height = image.size
    if width * height > max_pixels:
        raise Refused("limit", f"has {width} x {height} pixels, the limit is {max_pixels} in all")
    image.load()
    image = _upright(image)
    image = _as_rgb(image)
    width, height = image.size
    return Message({"width": width, "height": height}, image.tobytes())


def _upright(image: Any) -> Any:
    """Return a picture turned as its orientation says; a damaged orientation counts as none."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):
        image = _grey_of_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of_16_bits(image: Any) -> Any:
    """Return 8 bits, white where transparent, which Pillow would compare with the 8 bits only."""
    from PIL import Image

    hidden = image.info.pop("transparency", None)
    image = image.convert("I")
    grey = image.point(lambda value: value / 256).convert("L")
    if hidden is not None:
        values = memoryview(image.tobytes()).cast("i")
        mask = bytes(255 if value == hidden else 0 for value in values)
        grey.paste(255, mask=Image.frombytes("L", image.size, mask))
    return grey


def _decode_audio(content: bytes, limits: dict[str, Any]) -> Message:
    """Return float32 samples of one channel, the mean of all, at the rate that is asked for."""
    import numpy as np
    import soundfile

    try:
        sound: Any = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError:
        raise Refused("invalid", "is not WAV, FLAC, Ogg or MP3, or is damaged") from None
    if sound.format not in _AUDIO_FORMATS:
        raise Refused("invalid", f"is of the format {sound.format}: send WAV, FLAC, Ogg or MP3")
    rate_hz = sound.samplerate
    if not _MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise Refused(
            "range", f"has {rate_hz} samples a second, not {_MIN_RATE_HZ} to {MAX_RATE_HZ}"
        )
    if sound.channels > _MAX_CHANNELS:
        raise Refused("range", f"has {sound.channels} channels, the limit is {_MAX_CHANNELS}")
    samples = _read_samples(sound, int(limits["max_audio_s"] * rate_hz), limits["max_audio_s"])
    samples = np.clip(samples, -1, 1)
    wanted_hz = limits["rate_hz"]
    if wanted_hz not in (None, rate_hz):
        import soxr

        samples, rate_hz = soxr.resample(samples, rate_hz, wanted_hz), wanted_hz
        if not len(samples):
            samples = np.zeros(1)
    return Message({"rate_hz": rate_hz}, samples.astype("<f4").tobytes())


def _read_samples(sound: Any, max_frames: int, max_s: float) -> Any:
    """Read block by block: what a header says about the length counts for nothing."""
    import numpy as np

    blocks, num_frames = [], 0
    while True:
        block = sound.read(_FRAMES_PER_BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            break
        num_frames += len(block)
        if num_frames > max_frames:
            raise Refused("limit", f"is longer than {max_s:g} s, the limit")
        blocks.append(block.mean(axis=1, dtype=np.float32))
    if not num_frames:
        raise Refused("invalid", "has no samples")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise Refused("invalid", "has samples that are not numbers")
    return samples


if __name__ == "__main__":
    main(sys.argv[1:])
