"""Finds a model's safetensors files and reads them tensor by tensor, in constant memory."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from batchmill.engine.errors import ModelLoadError

_WHOLE = "model.safetensors"
#: Names of files that torch has pickled.
_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt")
#: A file is reopened after this many bytes: what was read stays in memory while it is open.
_MAPPED_BYTES = 32 * 1024**2
#: Seconds between two lines of progress.
_PROGRESS_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The bytes of weights that have been read so far, and all bytes."""

    num_bytes: int
    total_bytes: int


#: Called after every tensor.
OnProgress = Callable[[LoadProgress], None]


def index_file(folder: Path) -> Path | None:
    """Return the index of a model in several files; None if it is in one, which comes first."""
    index = folder / f"{_WHOLE}.index.json"
    return index if index.is_file() and not (folder / _WHOLE).is_file() else None


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that contain a model.

    Raises:
        ModelLoadError: there are none, or a file that the index names is missing.
    """
    index = index_file(folder)
    if index is None and not (folder / _WHOLE).is_file():
        _refuse_pickles(folder)
    names = [_WHOLE] if index is None else _indexed_names(index)
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ModelLoadError(
                f"{path} does not exist: the folder must hold the model's weights as safetensors, "
                "so download the missing files"
            )
    return paths


def _refuse_pickles(folder: Path) -> None:
    """Refuse a model that has its weights only as pickles, which run code when they are read."""
    for pattern in _PICKLES:
        for path in sorted(folder.glob(pattern)):
            raise ModelLoadError(
                f"{folder} has its weights only as pickles ({path.name}), which can run any code "
                "when they are read, and no safetensors: take a revision of the model with "
                "safetensors (hubs convert models on request), or, if you trust the file, convert "
                'it elsewhere: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}').save_pretrained('converted')\""
            )


def _indexed_names(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelLoadError(
            f"{index} cannot be read as an index of weights ({type(error).__name__}): download it "
            "again"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelLoadError(
                f"{index} names {name!r}, but it may only name files in its own folder: download "
                "it again"
            )
    return sorted(names)


def stored_names(folder: Path) -> dict[str, Path]:
    """Return the file of each stored tensor, by its name. If two files hold it, the index chooses.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    paths = weight_files(folder)
    chosen = _index(folder)
    places: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{path} cannot be read ({error}): download or convert it again"
            ) from error
        for name in names:
            if name not in places or chosen.get(name) == path.name:
                places[name] = path
    return places


def _index(folder: Path) -> Mapping[str, str]:
    """Return the file name of each tensor by the index, which has been checked."""
    path = index_file(folder)
    return {} if path is None else dict(json.loads(path.read_text())["weight_map"])


def stream_tensors(
    paths: Sequence[Path], on_progress: OnProgress | None = None
) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield every stored tensor with its file and name; it is valid until the next is requested.

    Args:
        paths: Safetensors files.
        on_progress: Called after every tensor; None logs the progress every few seconds.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    report = on_progress or _ProgressLog()
    total_bytes = sum(path.stat().st_size for path in paths)
    num_bytes = 0
    for path in paths:
        try:
            for name, value in _stream_file(path):
                yield path, name, value
                num_bytes += value.nbytes
                report(LoadProgress(num_bytes, total_bytes))
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{path} cannot be read ({error}): download or convert it again"
            ) from error
    report(LoadProgress(total_bytes, total_bytes))


def _stream_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        names = list(file.keys())
    while names:
        mapped_bytes = 0
        with safe_open(path, framework="pt", device="cpu") as file:
            while names and mapped_bytes < _MAPPED_BYTES:
                name = names.pop(0)
                value = file.get_tensor(name)
                mapped_bytes += value.nbytes
                yield name, value
                del value


class _ProgressLog:
    """Logs the progress every few seconds."""

    def __init__(self) -> None:
        self._started_at_s = self._last_at_s = time.monotonic()
        _log.info("reading weights", extra={"phase": _phase(0.0)})

    def __call__(self, progress: LoadProgress) -> None:
        now_s = time.monotonic()
        if now_s - self._last_at_s < _PROGRESS_INTERVAL_S:
            return
        self._last_at_s = now_s
        _log.info(
            "reading weights: %.1f of %.1f GB, %.0f s",
            progress.num_bytes / 1e9,
            progress.total_bytes / 1e9,
            now_s - self._started_at_s,
            extra={"phase": _phase(progress.num_bytes / max(1, progress.total_bytes))},
        )


def _phase(share: float) -> str:
    return f"loading the model: {share:.0%}"
