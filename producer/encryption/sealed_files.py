"""Files whose content is sealed in frames, so that a long one is never whole in memory.

A sealed file: the bytes b5 42 4d 46, then frames. A frame is the length of a sealed value in four
bytes, big-endian, and the value (`protocol/content.py`). Each frame is bound to the file and to its
place in it, and the last one says that it is the last, so a file that was cut is noticed.

Source of the form: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar (CRYPTO 2015).
"""

from __future__ import annotations

import io
from typing import Any, Final

from batchmill.producer.errors import ContentChanged
from batchmill.producer.protocol.content import Cipher, Place, is_sealed, key_id_of

MAGIC: Final = b"\xb5BMF"
#: Bytes of content in a frame; the last one has fewer.
FRAME_BYTES: Final = 1 << 20
#: Longest sealed value of a frame: the content, the key's id of at most 255 bytes, and the rest.
_MAX_VALUE_BYTES: Final = FRAME_BYTES + 512
_LENGTH_BYTES: Final = 4


class SealedWriter:
    """Seals what is written, and writes it to a handle in frames."""

    def __init__(self, handle: Any, cipher: Cipher, file_id: str) -> None:
        """Bind to a handle for bytes, to the keys, and to the file's name."""
        self._handle = handle
        self._cipher = cipher
        self._file_id = file_id
        self._pending = bytearray()
        self._num_frames = 0
        self._handle.write(MAGIC)

    def __enter__(self) -> SealedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, content: bytes) -> None:
        """Take content; frames that are full are written."""
        self._pending += content
        while len(self._pending) > FRAME_BYTES:  # one byte more: the last frame is never empty
            self._write_frame(FRAME_BYTES, is_last=False)

    def close(self) -> None:
        """Write the last frame, and close the handle."""
        if not self._handle.closed:
            try:
                self._write_frame(len(self._pending), is_last=True)
            finally:
                self._handle.close()

    def _write_frame(self, num_bytes: int, *, is_last: bool) -> None:
        place = _place(self._file_id, self._num_frames, is_last=is_last)
        value = self._cipher.seal(bytes(self._pending[:num_bytes]), place)
        del self._pending[:num_bytes]
        self._num_frames += 1
        self._handle.write(len(value).to_bytes(_LENGTH_BYTES, "big") + value)


class _SealedContent(io.RawIOBase):
    """The content of a sealed file, frame by frame."""

    def __init__(self, handle: Any, cipher: Cipher, file_id: str) -> None:
        super().__init__()
        self._handle = handle
        self._cipher = cipher
        self._file_id = file_id
        self._num_frames = 0
        self._content = memoryview(b"")
        self._next_value = self._read_value()
        if not self._next_value:
            raise self._changed()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes of the content; return how many, 0 at the end.

        Raises:
            KeyMissing: the ring does not have the key of the file.
            ContentChanged: the file was changed, cut or exchanged.
        """
        while not self._content and self._next_value:
            self._open_frame()
        taken = self._content[: len(buffer)]
        buffer[: len(taken)] = taken
        self._content = self._content[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self._handle.close()
        super().close()

    def _open_frame(self) -> None:
        value, self._next_value = self._next_value, self._read_value()
        place = _place(self._file_id, self._num_frames, is_last=not self._next_value)
        self._num_frames += 1
        if not is_sealed(value):
            raise self._changed()
        self._content = memoryview(self._cipher.open(value, place))

    def _read_value(self) -> bytes:
        """Return the next sealed value; empty at the end of the file."""
        head = self._handle.read(_LENGTH_BYTES)
        if not head:
            return b""
        length = int.from_bytes(head, "big")
        value: bytes = self._handle.read(length) if length <= _MAX_VALUE_BYTES else b""
        if len(head) < _LENGTH_BYTES or not value or len(value) < length:
            raise self._changed()
        return value

    def _changed(self) -> ContentChanged:
        return ContentChanged(
            f"the file {self._file_id} was changed or cut after it was sealed; restore it from a "
            "backup, or upload it again"
        )


def write_sealed(handle: Any, cipher: Cipher, file_id: str) -> Any:
    """Return what writes a file to a handle: sealed if there are keys, otherwise as it is."""
    return SealedWriter(handle, cipher, file_id) if cipher.key_ids else handle


def read_sealed(handle: Any, cipher: Cipher, file_id: str) -> Any:
    """Return what reads the content of a file from a handle, whether it is sealed or not.

    Raises:
        ContentChanged: the file was cut.
    """
    if handle.read(len(MAGIC)) == MAGIC:
        return io.BufferedReader(_SealedContent(handle, cipher, file_id), FRAME_BYTES)
    handle.seek(0)
    return handle


def file_key_id(handle: Any) -> str | None:
    """Return the id of the key that sealed a file; None if it is not sealed."""
    if handle.read(len(MAGIC)) != MAGIC:
        return None
    return key_id_of(handle.read(_LENGTH_BYTES + 512)[_LENGTH_BYTES:])


def _place(file_id: str, number: int, *, is_last: bool) -> Place:
    return Place(file_id, f"content:{number}{':last' if is_last else ''}")
