"""The hash of a file covers every byte, and is computed once per state of the file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from batchmill.engine.loading import file_hash as module
from batchmill.engine.loading.file_hash import file_hash
from batchmill.engine.loading.fingerprint import model_identity

SIZE = 3 * 1024 * 1024


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and pieces that are smaller than the test's files."""
    path = tmp_path / "cache"
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", str(path))
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1024 * 1024)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    return path


def change(path: Path, position: int) -> None:
    """Change one byte without a change of size or modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# Between two of the pieces that were read when hashes were samples, at borders, and at the ends.
@pytest.mark.parametrize("position", [0, 1024 * 1024 - 1, 1024 * 1024, 1_600_123, SIZE - 1])
def test_every_byte_changes_the_hash(position: int, path: Path) -> None:
    before = file_hash(path)
    change(path, position)
    assert file_hash(path) != before


def test_two_models_that_differ_in_one_number_have_two_identities(tmp_path: Path) -> None:
    identities = set()
    for name, index in (("a", 400_000), ("b", 400_001)):
        folder = tmp_path / name
        folder.mkdir()
        weight = torch.zeros(1_000_000)
        weight[index] = 1.0
        save_file({"weight": weight}, folder / "model.safetensors")
        identities.add(model_identity(folder, "the same", torch.bfloat16))
    assert len(identities) == 2


def test_a_settled_file_is_read_once(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 60)
    first = file_hash(path)
    [known] = (cache / "hashes").iterdir()
    known.write_text("k" * 40)  # shows that the content is not read again
    assert file_hash(path) == "k" * 40
    change(path, 5)
    assert file_hash(path) not in (first, "k" * 40)


def test_a_file_that_has_just_changed_is_read_again(path: Path, cache: Path) -> None:
    """It might be written again within the same tick of the file system's clock."""
    file_hash(path)
    assert not (cache / "hashes").exists()


def test_a_cache_that_cannot_be_written_costs_only_time(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 60)
    cache.write_text("not a folder")
    assert file_hash(path) == file_hash(path)
