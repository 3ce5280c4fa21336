"""Converts a GGUF file to a Hugging Face folder in the user's cache, once."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
)

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.model_length import check_max_model_len, longest_length

from .fingerprint import sampled_hash

#: Part of the cached folder's name; raise it when the conversion changes.
_CONVERSION = "bf16-1"

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return where converted models are kept: `BATCHMILL_CACHE_DIR`, or the user's cache."""
    named = os.environ.get("BATCHMILL_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchmill"


def converted_folder(gguf_path: Path, max_model_len: int | None = None) -> Path:
    """Return the Hugging Face folder of a GGUF file; convert the file to bfloat16 on first use.

    Processes may race: each converts into a folder of its own, and the first to finish renames it
    to the final name, which is atomic.

    Args:
        gguf_path: The file.
        max_model_len: Longest sequence that the model is to compute, tokens. It is checked before
            the conversion, which reads all weights. None checks nothing.

    Raises:
        ConfigError: The model was made for less than `max_model_len`.
        ModelLoadError: The file cannot be converted, or the cache folder cannot be written.
    """
    try:
        root = cache_folder() / "models"
        final = root / f"{gguf_path.stem}-{_CONVERSION}-{sampled_hash(gguf_path)[:16]}"
        if final.is_dir():
            return final
        if max_model_len is not None:
            check_max_model_len(max_model_len, longest_length(_read_config(gguf_path)))
        root.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=".converting-", dir=root))
    except OSError as error:
        raise ModelLoadError(
            f"the model cache {cache_folder()} cannot be used ({error}): set BATCHMILL_CACHE_DIR "
            "to a writable folder"
        ) from error
    _log.info("converting %s to %s (once; later starts reuse it)", gguf_path.name, final)
    try:
        _convert(gguf_path, own)
        _make_readable(own)
        _publish(own, final)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return final


def _make_readable(folder: Path) -> None:
    """Let other users of a shared cache read the files; `mkdtemp` makes them private."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def _publish(own: Path, final: Path) -> None:
    """Rename a finished folder to its final name, unless another process was first."""
    try:
        own.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def _read_config(gguf_path: Path) -> PreTrainedConfig:
    """Read the model's configuration from the file's header."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name
        )
    except Exception as error:  # as in `_convert`
        raise _unreadable_error(gguf_path, error) from error
    return config


def _convert(gguf_path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as safetensors and JSON."""
    try:
        # Without `dequantize` some architectures keep packed blocks, and others become float32.
        model = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent,
            gguf_file=gguf_path.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    except Exception as error:  # three libraries parse bytes that may be anything
        raise _unreadable_error(gguf_path, error) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unreadable_error(gguf_path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{gguf_path} cannot be read as GGUF ({error}): download it again, or use the model's "
        "safetensors instead"
    )
