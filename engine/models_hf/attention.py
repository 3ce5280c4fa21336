"""Our paged attention behind transformers' attention interface.

Two implementations are registered. `batchmill_paged` stores a layer's keys and values in our cache
and attends over it. `batchmill_inspection` runs once at load and records how a model calls its
attention; see `inspection.py`.

Source: transformers, "Attention Interface" and "Attention Mask Interface".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.write_kv import write_kv
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

#: Their names in transformers.
PAGED, INSPECTION = "batchmill_paged", "batchmill_inspection"
#: Attribute of an attention module that holds its `PagedLayer`. Not every model passes keyword
#: arguments on to its attention, so the step is found through the module.
_ATTRIBUTE = "_batchmill_layer"


class CurrentStep:
    """Owns the data that all layers share while a step runs."""

    def __init__(self) -> None:
        self._running: tuple[StepInputs, KVCache] | None = None
        self._plans: dict[int | None, AttentionPlan] = {}

    def begin(self, inputs: StepInputs, kv_cache: KVCache) -> None:
        """Start a step."""
        self._running, self._plans = (inputs, kv_cache), {}

    def end(self) -> None:
        """Release the step's tensors."""
        self._running, self._plans = None, {}

    @property
    def running(self) -> tuple[StepInputs, KVCache]:
        """The step's inputs and the cache."""
        assert self._running is not None, "attention runs within a step"
        return self._running

    def plan(self, window: int | None) -> AttentionPlan:
        """Return the step's plan for layers with this window."""
        if window not in self._plans:
            inputs, kv_cache = self.running
            self._plans[window] = AttentionPlan(
                inputs.block_tables,
                inputs.cu_seqlens_q,
                inputs.seq_lens,
                kv_cache.layers[0][0],
                window=window,
                only_decodes=inputs.max_query_len == 1,
            )
        return self._plans[window]


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """The data that one attention module needs to attend over our cache."""

    index: int
    window: int | None
    step: CurrentStep

    def bind(self, module: nn.Module) -> None:
        """Attach this to an attention module."""
        object.__setattr__(module, _ATTRIBUTE, self)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store keys and values in the cache and attend over it.

        Args:
            query: [1, num_heads, num_tokens, head_dim].
            key: [1, num_kv_heads, num_tokens, head_dim].
            value: Shaped like `key`.
            scale: Factor on the scores; None is head_dim ** -0.5.
            sinks: [num_heads], each head's score for nothing, or None.

        Returns:
            [1, num_tokens, num_heads, head_dim].
        """
        inputs, kv_cache = self.step.running
        k_cache, v_cache = kv_cache.layers[self.index]
        queries, keys, values = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        k_scale, v_scale = kv_cache.k_scale, kv_cache.v_scale
        write_kv(
            keys,
            values,
            k_cache,
            v_cache,
            inputs.slot_mapping,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        attended = paged_attention(
            queries,
            k_cache,
            v_cache,
            inputs.block_tables,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            window=self.window,
            plan=self.step.plan(self.window),
            sinks=None if sinks is None else sinks.float(),
            k_scale=k_scale,
            v_scale=v_scale,
        )
        return attended[None]


def _paged_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement the attention interface; inspection has checked the other arguments."""
    layer: PagedLayer = getattr(module, _ATTRIBUTE)
    return layer.attend(query, key, value, scaling, kwargs.get("s_aux")), None


def _no_mask(**kwargs: Any) -> Tensor | None:
    """Implement the mask interface: our attention needs no mask."""
    return None


def register_paged_attention() -> None:
    """Register `batchmill_paged` with transformers; may be repeated."""
    AttentionInterface.register(PAGED, _paged_forward)
    AttentionMaskInterface.register(PAGED, _no_mask)
