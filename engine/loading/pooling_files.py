"""How a model pools by default: the files of sentence-transformers beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .config_check import read_object

#: Our names of its pooling modes.
_MODES: Final = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}


@dataclass(frozen=True, slots=True)
class PoolingDefaults:
    """What a model's makers say of its embeddings."""

    pooling: str = "last"


def pooling_defaults(folder: Path, *, pooling: str = "last") -> PoolingDefaults:
    """Read the defaults of the model in a folder.

    Args:
        folder: Its files; `modules.json` lists the modules that sentence-transformers runs.
        pooling: The default if they do not say it.

    Raises:
        ModelLoadError: a file is broken.
    """
    for mode, name in _MODES.items():
        if _pooling_config(folder).get(mode) is True:
            pooling = name
    return PoolingDefaults(pooling)


def longest_text(folder: Path) -> int | None:
    """Return the most tokens that a model's makers give it; None if its files do not say it.

    Raises:
        ModelLoadError: the file is broken.
    """
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    length = read_object(path, "it says how long its texts may be").get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def _pooling_config(folder: Path) -> dict[str, Any]:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return {}
    return read_object(path, "it says how the model pools")
