"""Files that are sealed in frames: long, cut, reordered, exchanged, and without their key."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer import ContentChanged, KeyMissing
from batchmill.producer.encryption import sealed_files
from batchmill.producer.encryption.key_ring import NO_KEYS, KeyRing, new_key
from batchmill.producer.encryption.sealed_files import file_key_id, read_sealed, write_sealed

KEY = new_key("a")
RING = KeyRing([KEY])
FRAME_BYTES = 64
CONTENT = bytes(range(256)) * 2 + b"the end"


@pytest.fixture(autouse=True)
def short_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_files, "FRAME_BYTES", FRAME_BYTES)


class Kept(io.BytesIO):
    """A handle whose bytes are kept when it is closed."""

    kept = b""

    def close(self) -> None:
        self.kept = self.getvalue()
        super().close()


def sealed(content: bytes, ring: KeyRing = RING, file_id: str = "file-1") -> bytes:
    handle = Kept()
    with write_sealed(handle, ring, file_id) as writer:
        for start in range(0, len(content), 50):
            writer.write(content[start : start + 50])
    return handle.kept


def opened(stored: bytes, ring: KeyRing = RING, file_id: str = "file-1") -> bytes:
    with read_sealed(io.BytesIO(stored), ring, file_id) as reader:
        return bytes(reader.read())


def frames(stored: bytes) -> list[bytes]:
    found, at = [], 4
    while at < len(stored):
        end = at + 4 + int.from_bytes(stored[at : at + 4], "big")
        found.append(stored[at:end])
        at = end
    return found


@pytest.mark.parametrize("num_bytes", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, len(CONTENT)])
def test_content_comes_back_whatever_its_length(num_bytes: int) -> None:
    content = CONTENT[:num_bytes]
    stored = sealed(content)
    assert opened(stored) == content
    assert num_bytes < 8 or content[:8] not in stored
    assert file_key_id(io.BytesIO(stored)) == KEY.id
    assert len(frames(stored)) == max(1, -(-num_bytes // FRAME_BYTES))


def test_lines_of_a_sealed_file_are_read_one_by_one() -> None:
    with read_sealed(io.BytesIO(sealed(b"one\n" * 40 + b"last")), RING, "file-1") as reader:
        lines = list(iter(lambda: reader.readline(10), b""))
    assert lines == [b"one\n"] * 40 + [b"last"]


def test_a_plain_file_is_read_as_it_is() -> None:
    assert sealed(CONTENT, NO_KEYS) == CONTENT
    assert opened(CONTENT) == CONTENT
    assert opened(b"") == b""
    assert file_key_id(io.BytesIO(CONTENT)) is None


def cut_frame(stored: bytes) -> bytes:
    return stored[: -len(frames(stored)[-1])]


def swap_frames(stored: bytes) -> bytes:
    first, second, *rest = frames(stored)
    return stored[:4] + b"".join([second, first, *rest])


def add_frame(stored: bytes) -> bytes:
    return stored + frames(stored)[-1]


def flip_bit(stored: bytes) -> bytes:
    return stored[:-30] + bytes([stored[-30] ^ 1]) + stored[-29:]


@pytest.mark.parametrize(
    "change",
    [
        cut_frame,
        swap_frames,
        add_frame,
        flip_bit,
        pytest.param(lambda stored: stored[:-1], id="cut_byte"),
        pytest.param(lambda stored: stored[:4], id="no_frames"),
        pytest.param(lambda stored: stored + b"\xff" * 4, id="huge_frame"),
        pytest.param(lambda stored: stored[:4] + b"\0\0\0\3abc", id="plain_frame"),
    ],
)
def test_a_changed_file_is_noticed(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ContentChanged):
        opened(change(sealed(CONTENT)))


def test_a_file_cannot_be_exchanged_for_another_one_or_read_without_its_key() -> None:
    stored: Any = sealed(CONTENT)
    with pytest.raises(ContentChanged):
        opened(stored, file_id="file-2")
    with pytest.raises(KeyMissing):
        opened(stored, KeyRing([new_key("a")]))
