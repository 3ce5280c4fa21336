"""Records how a transformers model calls its attention, and refuses calls that ours cannot serve.

A model runs once over a few tokens with an attention that records its arguments. That reveals more
than any configuration: how many layers attend, with which heads, masks and extra arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from batchmill.engine.errors import UnsupportedModelError

from .attention import INSPECTION

#: Number of tokens in the inspected run.
NUM_TOKENS = 8
#: Attribute of an attention module that holds the list of recorded calls, during inspection.
_ATTRIBUTE = "_batchmill_calls"
#: Arguments of attention that change nothing here: bookkeeping of the model, values that are zero
#: outside training, and `sliding_window`, which the mask repeats; and `s_aux`, the sinks, which are
#: served.
_HARMLESS = frozenset(
    (
        "s_aux",
        *("dropout", "position_ids", "position_embeddings", "cache_position", "use_cache"),
        *("past_key_value", "past_key_values", "output_attentions", "output_hidden_states"),
        *("return_dict", "is_causal", "sliding_window", "output_router_logits", "deterministic"),
    )
)
#: Kinds of masks: the first number of the tensor that describes a mask. The second is the window.
_CAUSAL, _OTHER = 0, 1


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of the attention interface."""

    module: nn.Module
    query_shape: tuple[int, ...]  # [1, num_heads, num_tokens, head_dim]
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    #: Keys that a query sees; None sees all.
    window: int | None
    #: Why our attention cannot serve the call, or None if it can.
    problem: str | None


def inspect_attention(model: PreTrainedModel) -> list[AttentionCall]:
    """Run a model once and return its attention calls, in order.

    Raises:
        UnsupportedModelError: our attention cannot serve one of them, or layers differ.
    """
    AttentionInterface.register(INSPECTION, _record_call)
    AttentionMaskInterface.register(INSPECTION, _describe_mask)
    calls: list[AttentionCall] = []
    for module in model.modules():
        object.__setattr__(module, _ATTRIBUTE, calls)
    try:
        model.set_attn_implementation(INSPECTION)
        token_ids = torch.arange(NUM_TOKENS, device=model.device)[None] + 3
        with torch.inference_mode():
            model(input_ids=token_ids, position_ids=token_ids - 3, use_cache=False)
    except Exception as error:  # of any model's code
        raise UnsupportedModelError(
            f"it does not run through transformers' attention interface ({type(error).__name__}: "
            f"{error})"
        ) from error
    finally:
        for module in model.modules():
            object.__delattr__(module, _ATTRIBUTE)
    _check_calls(model, calls)
    return calls


def _check_calls(model: PreTrainedModel, calls: Sequence[AttentionCall]) -> None:
    """Refuse the first property that our attention or cache does not support."""
    problem = next((call.problem for call in calls if call.problem), None)
    num_layers = model.config.get_text_config().num_hidden_layers
    if problem is None and len(calls) != num_layers:
        problem = (
            f"{len(calls)} of its {num_layers} layers attend through transformers' attention "
            "interface; the others are recurrent, or have their own attention"
        )
    if problem is None and len({id(call.module) for call in calls}) != len(calls):
        problem = "an attention module runs more than once"
    shapes = sorted({(call.key_shape[1], call.key_shape[3]) for call in calls})
    if problem is None and len(shapes) > 1:
        problem = f"its layers have different key heads ({_format_shapes(shapes)})"
    if problem is not None:
        raise UnsupportedModelError(problem)


def _format_shapes(shapes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{heads} of {head_dim}" for heads, head_dim in shapes)


def _record_call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement the attention interface: record the call and return zeros."""
    window, problem = _read_mask(attention_mask, kwargs)
    problem = problem or _problem_of_tensors(query, key, value) or _problem_of_extras(kwargs)
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        problem = "its attention is bidirectional"
    calls: list[AttentionCall] = getattr(module, _ATTRIBUTE)
    calls.append(
        AttentionCall(
            module, tuple(query.shape), tuple(key.shape), tuple(value.shape), window, problem
        )
    )
    num_tokens, num_heads, head_dim = query.shape[2], query.shape[1], value.shape[3]
    return query.new_zeros(1, num_tokens, num_heads, head_dim), None


def _problem_of_tensors(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if key.shape != value.shape or query.shape[3] != key.shape[3]:
        return (
            f"its queries, keys and values have heads of {query.shape[3]}, {key.shape[3]} and "
            f"{value.shape[3]}; they must have one size"
        )
    if key.shape[2] != query.shape[2] or query.shape[1] % key.shape[1]:
        return (
            f"it attends from {query.shape[1]} heads of {query.shape[2]} tokens to "
            f"{key.shape[1]} heads of {key.shape[2]}"
        )
    return None


def _problem_of_extras(kwargs: dict[str, Any]) -> str | None:
    extras = {name: value for name, value in kwargs.items() if value is not None}
    if "s_aux" in extras and extras["s_aux"].dim() != 1:
        return f"its attention has sinks of shape {list(extras['s_aux'].shape)}"
    if "softcap" in extras:
        return f"its attention scores are capped (softcap {extras['softcap']})"
    unknown = sorted(set(extras) - _HARMLESS)
    return f"its attention takes {', '.join(unknown)}" if unknown else None


def _read_mask(mask: Tensor | None, kwargs: dict[str, Any]) -> tuple[int | None, str | None]:
    """Return the window and the problem of the mask that attention received."""
    if mask is None:
        return kwargs.get("sliding_window"), None
    if mask.shape != (1, 1, 1, 2):
        return None, "it changes attention masks after they are created"
    kind, window = mask.flatten().tolist()
    if kind != _CAUSAL:
        return None, "its attention mask is neither causal nor a sliding window"
    return window or None, None


def _describe_mask(
    *, mask_function: Callable[..., Tensor], local_size: int | None = None, **kwargs: Any
) -> Tensor:
    """Implement the mask interface: return a tensor that describes the mask instead of it."""
    window = local_size or 0
    kind = _CAUSAL if _is_causal(mask_function, window) else _OTHER
    return torch.tensor([kind, window], device=kwargs.get("device")).view(1, 1, 1, 2)


def _is_causal(mask_function: Callable[..., Tensor], window: int) -> bool:
    """Return whether a query sees exactly the keys up to itself, within the window.

    Positions around multiples of the window are compared, because there a window and a chunk
    differ.
    """
    edges = {edge + delta for edge in (0, NUM_TOKENS, window, 2 * window) for delta in (-1, 0, 1)}
    points = torch.tensor(sorted(edge for edge in edges if edge >= 0))
    queries, keys = points[:, None], points[None, :]
    expected = keys <= queries
    if window:
        expected = expected & (keys > queries - window)
    zero = torch.tensor(0)
    try:
        seen = mask_function(zero, zero, queries, keys)
        return bool((seen == expected).all())
    except (IndexError, RuntimeError, TypeError):  # the function depends on the batch
        return False
