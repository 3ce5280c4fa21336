"""Converts a GGUF file to a Hugging Face folder in the user's cache, once."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
)

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.models.model_length import check_max_model_len, longest_length
from batchmill.kernels.cpu.build import cache_folder

from .gguf_positions import take_over_positions
from .gguf_split import join_parts, model_parts, parts_hash

if TYPE_CHECKING:
    # At run time it would bring torch's compiler along: seconds that native models do without.
    from gguf import GGUFReader
    from transformers import PreTrainedModel

#: Part of the cached folder's name; raise it when the conversion changes.
_CONVERSION = "bf16-2"

_log = logging.getLogger(__name__)


def converted_folder(gguf_path: Path, max_model_len: int | None = None) -> Path:
    """Return the Hugging Face folder of a GGUF file; convert the file to bfloat16 on first use.

    Processes may race: each converts into a folder of its own, and the first to finish renames it
    to the final name, which is atomic.

    Args:
        gguf_path: The file.
        max_model_len: Longest sequence that the model is to compute, tokens. It is checked before
            the conversion, which reads all weights. None checks nothing.

    Raises:
        ConfigError: the model was made for less than `max_model_len`.
        ModelLoadError: the file cannot be converted, or the cache folder cannot be written.
    """
    parts = model_parts(gguf_path)
    try:
        root = cache_folder() / "models"
        final = root / f"{parts[0].stem}-{_CONVERSION}-{parts_hash(parts)[:16]}"
        if final.is_dir():
            return final
        if max_model_len is not None:
            check_max_model_len(max_model_len, longest_length(_read_config(parts[0])))
        root.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=".converting-", dir=root))
    except OSError as error:
        raise ModelLoadError(
            f"the model cache {cache_folder()} cannot be used ({error}): set BATCHMILL_CACHE_DIR "
            "to a writable folder"
        ) from error
    _log.info(
        "converting %s to %s (once; later starts reuse it)",
        gguf_path.name,
        final,
        extra={"phase": "converting the model, once"},
    )
    try:
        _convert_parts(parts, own)
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


def _convert_parts(parts: list[Path], folder: Path) -> None:
    """Convert a model in one file or several, which are joined before."""
    if len(parts) == 1:
        _convert(parts[0], folder)
        return
    with tempfile.TemporaryDirectory(prefix=".joining-", dir=folder.parent) as joining:
        joined = Path(joining) / parts[0].name
        try:
            join_parts(parts, joined)
        except ModelLoadError:
            raise
        except OSError as error:
            num_gb = sum(part.stat().st_size for part in parts) / 1e9
            raise ModelLoadError(
                f"the parts of {parts[0]} cannot be joined in {joining} ({error}): one file of all "
                f"parts needs {num_gb:.1f} GB there while the model is converted, so make room, or "
                "set BATCHMILL_CACHE_DIR to a folder that has it"
            ) from error
        except Exception as error:  # as in `_convert`
            raise _unreadable_error(parts[0], error) from error
        _convert(joined, folder)


def _convert(gguf_path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as safetensors and JSON."""
    # Imported here: other checkpoints are loaded on machines without the package.
    from gguf import GGUFReader

    config = _read_config(gguf_path)
    try:
        reader = GGUFReader(gguf_path)
    except Exception as error:  # as below
        raise _unreadable_error(gguf_path, error) from error
    _refuse_split(gguf_path, reader)
    take_over_positions(config, reader, gguf_path)
    auto: Any = AutoModelForCausalLM
    try:
        # Without `dequantize` some architectures keep packed blocks, and others become float32.
        model, info = auto.from_pretrained(
            gguf_path.parent,
            gguf_file=gguf_path.name,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    except Exception as error:  # three libraries parse bytes that may be anything
        raise _unreadable_error(gguf_path, error) from error
    _check_complete(gguf_path, reader, model, info)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _refuse_split(gguf_path: Path, reader: GGUFReader) -> None:
    field = reader.fields.get("split.count")
    if field is not None and field.contents() > 1:
        raise ModelLoadError(
            f"{gguf_path} is one of {field.contents()} parts of a model, and its name does not say "
            "which: name the parts as they were (model-00001-of-00002.gguf …), or use the model's "
            "safetensors instead"
        )


def _check_complete(
    gguf_path: Path, reader: GGUFReader, model: PreTrainedModel, info: dict[str, Any]
) -> None:
    """Refuse a file that lacks weights of its model, which would be random, or has others."""
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking:
        raise ModelLoadError(
            f"{gguf_path} lacks {len(lacking)} weights of a {type(model).__name__}, or has them "
            f"in another shape, among them {lacking[0]}: download it again, or use the model's "
            "safetensors instead"
        )
    ignored = {"output.weight"} if model.config.tie_word_embeddings else set()
    num_stored = sum(
        int(tensor.n_elements)
        for tensor in reader.tensors
        # Factors of positions are not weights.
        if tensor.name not in ignored and not tensor.name.startswith("rope_f")
    )
    num_taken = sum(weight.numel() for weight in model.parameters())
    if num_stored > num_taken:
        raise UnsupportedModelError(
            f"{gguf_path} holds {num_stored:,} weights, and a {type(model).__name__} has "
            f"{num_taken:,}: it belongs to a variant that cannot be converted, so use the model's "
            "safetensors instead"
        )


def _unreadable_error(gguf_path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{gguf_path} cannot be read as GGUF ({error}): download it again, or use the model's "
        "safetensors instead"
    )
