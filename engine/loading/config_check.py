"""Checks of config.json before anything reads it, with errors that name the field and its value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError

_MAX_SIZE: Final = 2**31 - 1
_MAX_SHOWN_CHARS: Final = 60
_MAX_ERROR_CHARS: Final = 200


class _Kind(NamedTuple):
    """What a field must be, and whether a value is that."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_SIZE


def _is_size(value: Any) -> bool:
    """Return whether a value is a size; some models have one for each layer, in a list."""
    sizes = value if isinstance(value, list) else [value]
    return all(_is_count(each) and each > 0 for each in sizes)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_SIZE: Final = _Kind(f"an integer from 1 to {_MAX_SIZE}", _is_size)
_COUNT: Final = _Kind(f"an integer from 0 to {_MAX_SIZE}", _is_count)
_POSITIVE: Final = _Kind("a number above 0", lambda value: _is_number(value) and value > 0)
_SHARE: Final = _Kind("a number from 0", lambda value: _is_number(value) and value >= 0)
_NUMBERS: Final = _Kind(
    "a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value))
)
_NAME: Final = _Kind("a string", lambda value: isinstance(value, str))
_NAMES: Final = _Kind("a list of strings", _is_list_of_names)
_OBJECT: Final = _Kind("an object", lambda value: isinstance(value, Mapping))
_FIELDS: Final[Mapping[str, _Kind]] = {
    **dict.fromkeys(
        (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "head_dim"),
            *("max_position_embeddings", "original_max_position_embeddings"),
        ),
        _SIZE,
    ),
    # 0 is written where no layer has a window.
    "sliding_window": _COUNT,
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), _COUNT),
    "moe_intermediate_size": _COUNT,
    **dict.fromkeys(("n_routed_experts", "n_shared_experts", "first_k_dense_replace"), _COUNT),
    **dict.fromkeys(("moe_k", "moe_num_shared_experts", "shared_expert_intermediate_size"), _COUNT),
    **dict.fromkeys(("moe_num_experts", "moe_layer_start_index"), _COUNT),
    **dict.fromkeys(("n_group", "topk_group", "moe_layer_interval", "decoder_sparse_step"), _SIZE),
    **dict.fromkeys(("rms_norm_eps", "routed_scaling_factor", "moe_norm_min"), _SHARE),
    **dict.fromkeys(("query_pre_attn_scalar", "rope_theta"), _POSITIVE),
    "model_type": _NAME,
    **dict.fromkeys(("architectures", "layer_types"), _NAMES),
    **dict.fromkeys(("rope_parameters", "rope_scaling", "quantization_config"), _OBJECT),
    **dict.fromkeys(("auto_map", "text_config"), _OBJECT),
}
_ROPE_FIELDS: Final[Mapping[str, _Kind]] = {
    **dict.fromkeys(("rope_type", "type"), _NAME),
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), _POSITIVE),
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), _POSITIVE),
    "partial_rotary_factor": _SHARE,
    "original_max_position_embeddings": _SIZE,
    **dict.fromkeys(("short_factor", "long_factor"), _NUMBERS),
}
#: Fields of which the first must divide, or must not exceed, the second.
_RELATIONS: Final = (
    ("num_key_value_heads", "divide", "num_attention_heads"),
    ("num_experts_per_tok", "not exceed", "num_local_experts"),
    ("num_experts_per_tok", "not exceed", "num_experts"),
    ("num_experts_per_tok", "not exceed", "n_routed_experts"),
    ("n_group", "divide", "n_routed_experts"),
    ("topk_group", "not exceed", "n_group"),
    ("moe_k", "not exceed", "moe_num_experts"),
)


def check_config_file(folder: Path) -> None:
    """Refuse a config.json with a value that no model can have; null stands for a default.

    Raises:
        ModelLoadError: it is broken; the message names the field, the value and what it must be.
    """
    path = folder / "config.json"
    values = read_object(path, "the model cannot be loaded without it")
    _check_fields(path, values, _FIELDS, "")
    for name in ("rope_parameters", "rope_scaling"):
        _check_rope(path, values.get(name) or {}, f"{name}.")
    for small, relation, large in _RELATIONS:
        first: Any = values.get(small)
        second: Any = values.get(large)
        if not _is_count(first) or not _is_count(second):
            continue
        if first > second or (relation == "divide" and second % first):
            _refuse(path, small, first, f"{relation} {large}, which is {second}")
    if isinstance(values.get("text_config"), Mapping):
        _check_fields(path, values["text_config"], _FIELDS, "text_config.")


def check_rope_types(folder: Path, rope: Any) -> None:
    """Refuse a scaling of positions that transformers does not know either.

    Args:
        folder: The model's folder.
        rope: `rope_parameters` as transformers has read them, possibly for each type of layers.

    Raises:
        UnsupportedModelError: it is not known.
    """
    parameters = rope if isinstance(rope, Mapping) else {}
    for each in (parameters, *parameters.values()):
        kind = each.get("rope_type", "default") if isinstance(each, Mapping) else "default"
        if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
            raise UnsupportedModelError(
                f"{folder / 'config.json'}: rope_type is {kind!r}, but must be one of default, "
                f"{', '.join(ROPE_INIT_FUNCTIONS)}: correct it, or use a model with one of these"
            )


def read_object(path: Path, why: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        why: Ends the message if it is missing.

    Raises:
        ModelLoadError: it is missing, is not JSON, or holds another value.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} does not exist, and {why}: download the model again"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{path} cannot be read as JSON ({type(error).__name__}): download it again"
        ) from error
    if not isinstance(values, dict):
        raise ModelLoadError(
            f"{path} must hold a JSON object, not a {type(values).__name__}: download it again"
        )
    return values


def brief(error: Exception) -> str:
    """Return the type and the beginning of an error of a library, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MAX_ERROR_CHARS]}"


def _check_rope(path: Path, values: Mapping[str, Any], prefix: str) -> None:
    """Check the parameters of positions, which may be given for each type of layers."""
    _check_fields(path, values, _ROPE_FIELDS, prefix)
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_fields(path, value, _ROPE_FIELDS, f"{prefix}{name}.")


def _check_fields(
    path: Path, values: Mapping[str, Any], kinds: Mapping[str, _Kind], prefix: str
) -> None:
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and not kind.fits(value):
            _refuse(path, prefix + name, value, f"be {kind.words}")


def _refuse(path: Path, name: str, value: Any, words: str) -> NoReturn:
    shown = json.dumps(value, default=str)
    if len(shown) > _MAX_SHOWN_CHARS:
        shown = f"{shown[:_MAX_SHOWN_CHARS]}…"
    raise ModelLoadError(
        f"{path}: {name} is {shown}, but must {words}: correct it, or download the file again"
    )
