"""The native decoder: computes logits with our kernels, over one flattened batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.engine.errors import UnsupportedModelError
from batchmill.engine.memory.host_memory import return_free_memory
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.fp8_fused import rms_norm_fp8
from batchmill.kernels.ops.fp8_linear import takes_fp8_rows
from batchmill.kernels.ops.linear import Linear
from batchmill.kernels.ops.packed_weight import PackedWeight
from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.rms_norm import add_rms_norm, rms_norm
from batchmill.kernels.ops.rope_and_cache import rope_and_cache
from batchmill.kernels.reference.fp8_rows import Fp8Rows
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

from .adapted_layers import StepAdapters, adapt_layers
from .decoder_layer import DecoderLayer, fused_layer
from .features import add_deepstack, put_features
from .feed_forward import (
    ExpertMixture,
    LinearFactory,
)
from .fp8_experts import with_fp8_experts
from .fp8_weights import check_fp8_model
from .fused_layers import FusedLayers, can_fuse
from .kv_scales import KvScales
from .model_config import AttentionConfig, ModelConfig
from .quantized_linears import head_linear, layer_linear
from .rotary import axis_of_pairs, cos_sin, inverse_frequencies, query_growth
from .split_layers import SplitDecoder, SplitHead
from .steered_rows import steer
from .weights import DecoderWeights


@dataclass(frozen=True, slots=True)
class _AttentionStep:
    """One step's data that layers with the same kind of attention share."""

    window: int | None
    cos: Tensor  # [num_tokens, rotary_dim / 2] float32
    sin: Tensor
    plan: AttentionPlan
    growth: Tensor | None  # [num_tokens, 1, 1] float32, on queries


class DecoderModel:
    """Owns a decoder's weights and computes logits from a step's inputs and the KV cache.

    Attributes:
        config: Sizes and features.
        dtype: Number format of weights, activations and the KV cache.
        device: Device of the weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        *,
        linear: LinearFactory | None = None,
        backend: Backend = "auto",
        quantization: str | None = None,
        split: SplitDecoder | None = None,
        kv_scales: KvScales | None = None,
    ) -> None:
        """Build a model from weights.

        Args:
            config: Sizes and features.
            weights: As returned by `load_weights`. Its layers are taken out of it, and moved to
                the device of the embedding.
            linear: Makes the matrix products; None uses those of `backend`, and computes all layers
                in one C++ call if that is possible.
            backend: Of our kernels, see `batchmill.kernels.ops.dispatch`.
            quantization: "int8" quantizes every matrix except the embedding and a mixture's router,
                "int4" the same, the head to 8 bits, on a GPU only those that are stored in 4 bits,
                "fp8" only the matrices of the layers; None keeps them in their dtype.
            split: The shard that weights and `config` are of, and the other ranks; None computes
                the whole model.
            kv_scales: Of an eight-bit KV cache; None is the cache's own.

        Raises:
            ValueError: both `linear` and `quantization` are given, or `backend` does not multiply
                quantized weights on this device.
            UnsupportedModelError: the model's matrices cannot be multiplied in fp8.
        """
        if linear is not None and quantization is not None:
            raise ValueError(
                f"linear makes the matrix products and quantization is {quantization!r}: give only "
                "one of them"
            )
        if quantization == "fp8":
            check_fp8_model(config)
        self.config = config
        self.kv_scales = kv_scales
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._backend = backend
        self._is_fp8 = quantization == "fp8"
        self._set_inputs(weights.embedding, split)
        can_use_cpp = linear is None and split is None and backend in ("auto", "cpp")
        is_fused = can_use_cpp and can_fuse(config, weights, quantization)
        self._fused = FusedLayers(config, weights, quantization) if is_fused else None
        is_plain = linear is None and quantization is None
        has_stored_groups, has_fp8 = weights.has_stored_groups, weights.has_fp8
        head = linear or head_linear(quantization, backend, self.device)
        linear = linear or layer_linear(
            *(quantization, backend, self.device),
            has_stored_groups=has_stored_groups,
            has_fp8=has_fp8,
        )
        # Fused layers have been taken out of the weights: none is left to build.
        summed = None if split is None else split.summed(linear)
        self._layers = self._build_layers(weights, linear, summed, is_plain=is_plain)
        self._step_adapters = StepAdapters()
        self._adapted_layers: list[DecoderLayer] = []
        self._final_norm = weights.final_norm
        #: The weights of the classification head, [num_labels, hidden]; None if there is none.
        self.score_weight = weights.score
        self._head: Linear | None = None
        if config.generates:
            own = head(weights.head, None)
            self._head = own if split is None else split.head(own)

    def _set_inputs(self, embedding: Tensor, split: SplitDecoder | None) -> None:
        """Keep the embedding and the frequencies of the rotations."""
        self._look_up: Callable[[Tensor], Tensor] = partial(F.embedding, weight=embedding)
        if split is not None:
            self._look_up = split.embedding(embedding)
        # Rounded to the dtype, because models were trained with the rounded scale.
        self._embedding_scale = float(torch.tensor(self.config.embedding_scale, dtype=self.dtype))
        self._kinds = self.config.attention_kinds
        self._frequencies = [
            inverse_frequencies(kind.rope, self.config.head_dim).to(self.device)
            for kind in self._kinds
        ]
        self._axes = [
            axis_of_pairs(kind.rope, len(each)).to(self.device) if kind.rope.grid_sections else None
            for kind, each in zip(self._kinds, self._frequencies, strict=True)
        ]

    def _build_layers(
        self,
        weights: DecoderWeights,
        linear: LinearFactory,
        summed: LinearFactory | None,
        *,
        is_plain: bool,
    ) -> list[DecoderLayer]:
        """Take the layers out of the weights one by one, so that only one exists twice."""
        layers: list[DecoderLayer] = []
        while weights.layers:
            kind = self._kinds.index(self.config.layers[len(layers)].attention)
            layer = weights.layers.pop(0).to(self.device)
            if self._is_fp8 and not weights.has_fp8:
                layer = with_fp8_experts(layer)
            layers.append(
                DecoderLayer.build(
                    layer,
                    self.config,
                    kind,
                    linear,
                    self._backend,
                    summed=summed,
                    is_plain=is_plain,
                    is_fp8=self._is_fp8,
                )
            )
            del layer
            return_free_memory()
        return layers

    def enable_adapters(self) -> None:
        """Prepare for steps with LoRA adapters; steps without any run as before.

        Raises:
            UnsupportedModelError: the weights are fp8, whose products take quantized activations.
        """
        if self._is_fp8:
            raise UnsupportedModelError(
                "LoRA adapters are not computed beside fp8 weights: leave quantization out, or use "
                "'int8' on a CPU"
            )
        self._adapted_layers = adapt_layers(
            self._single_layers, self.config, self._step_adapters, self._backend
        )

    @cached_property
    def _single_layers(self) -> list[DecoderLayer]:
        """The layers, to run them op by op."""
        if self._fused is None:
            return self._layers
        return [fused_layer(each, self._backend) for each in self._fused.layers]

    @property
    def is_capturable(self) -> bool:
        """Whether a GPU's decode step reads nothing on the host, so that a graph can record it."""
        return not any(isinstance(layer.feed_forward, ExpertMixture) for layer in self._layers)

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> Tensor | None:
        """Run one step; see `Model.forward`."""
        steps = [
            self._attention_step(kind, frequencies, axes, inputs, kv_cache)
            for kind, frequencies, axes in zip(
                self._kinds, self._frequencies, self._axes, strict=True
            )
        ]
        has_deepstack = inputs.features is not None and bool(inputs.features.deepstack)
        recorded = inputs.recorded_adapters
        is_plain = not (inputs.steered or has_deepstack or recorded is not None)
        if self._fused is not None and is_plain:
            x, residual = self._fused.run_layers(inputs, kv_cache, steps[0].cos, steps[0].sin)
        else:
            is_adapted = bool(inputs.adapters) or recorded is not None
            layers = self._adapted_layers if is_adapted else self._single_layers
            self._step_adapters.groups, self._step_adapters.recorded = inputs.adapters, recorded
            x, residual = self._run_layers(layers, inputs, steps, kv_cache)
        if not len(x):
            return None
        eps, backend = self.config.rms_norm_eps, self._backend
        x = add_rms_norm(x, residual, self._final_norm, eps, backend=backend)
        if inputs.num_logits:
            self._compute_logits(x[: inputs.num_logits], logits)
        return x[inputs.num_logits :] if inputs.num_states else None

    def _compute_logits(self, x: Tensor, logits: Tensor) -> None:
        if self._head is None:  # a model without an output layer: nothing samples from it
            return
        if isinstance(self._head, PackedWeight | SplitHead):
            self._head(x, out=logits)
        else:
            logits.copy_(self._head(x))
        if self.config.logit_divisor != 1.0:
            logits.div_(self.config.logit_divisor)
        if self.config.logit_softcap is not None:
            logits.div_(self.config.logit_softcap).tanh_().mul_(self.config.logit_softcap)

    def _embed(self, inputs: StepInputs) -> Tensor:
        """Look up a step's embeddings, [num_tokens, hidden]."""
        if self._fused is not None:
            return self._fused.embed(inputs)
        embedded = self._look_up(inputs.input_ids)
        if self._embedding_scale != 1.0:
            embedded = embedded * self._embedding_scale
        return put_features(embedded, inputs)

    def _run_layers(
        self,
        layers: list[DecoderLayer],
        inputs: StepInputs,
        steps: list[_AttentionStep],
        kv_cache: KVCache,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers; return the last layer's output and residual, for the rows that sample."""
        residual = self._embed(inputs)
        norm = partial(rms_norm, eps=self.config.rms_norm_eps, backend=self._backend)
        x = None
        for index, layer in enumerate(layers):
            normed = self._add_and_norm(x, residual, layer.input_norm, layer.qkv)
            x = self._attend(index, layer, normed, kv_cache, inputs, steps)
            if layer is layers[-1] and not inputs.samples_every_row:
                # After the last attention rows are independent, and only these lead to a token.
                x = x.index_select(0, inputs.sample_rows)
                residual = residual.index_select(0, inputs.sample_rows)
                if not len(x):
                    break
            if layer.attention_output_norm is not None:
                x = norm(x, layer.attention_output_norm)
            x = self._scale_residual(x)
            normed = self._add_and_norm(x, residual, layer.post_attention_norm, layer.feed_forward)
            x = layer.feed_forward(normed)
            if layer.feed_forward_output_norm is not None:
                x = norm(x, layer.feed_forward_output_norm)
            x = self._scale_residual(x)
            add_deepstack(residual, index, inputs)
            if inputs.steered:
                steer(x, inputs.steered, index, of_samples=layer is layers[-1])
        assert x is not None, "a model has at least one layer"
        return x, residual

    def _scale_residual(self, x: Tensor) -> Tensor:
        scale = self.config.residual_scale
        return x if scale == 1.0 else x * scale

    def _add_and_norm(
        self, x: Tensor | None, residual: Tensor, weight: Tensor | None, consumer: object
    ) -> Tensor | Fp8Rows:
        """Add x to the residual and normalise the sum, in the format that its consumer multiplies.

        Without a weight the sum itself is returned.
        """
        eps, backend = self.config.rms_norm_eps, self._backend
        if weight is None:
            return residual if x is None else residual.add_(x)
        if self._is_fp8 and takes_fp8_rows(consumer):
            return rms_norm_fp8(x, residual, weight, eps, backend=backend)
        if x is None:
            return rms_norm(residual, weight, eps, backend=backend)
        return add_rms_norm(x, residual, weight, eps, backend=backend)

    def _attention_step(
        self,
        kind: AttentionConfig,
        frequencies: Tensor,
        axes: Tensor | None,
        inputs: StepInputs,
        kv_cache: KVCache,
    ) -> _AttentionStep:
        """Prepare a step for the layers with one kind of attention."""
        positions = inputs.positions if inputs.rope_positions is None else inputs.rope_positions
        cos, sin = cos_sin(positions, frequencies, kind.rope.attention_factor, axes)
        plan = AttentionPlan(
            inputs.block_tables,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            kv_cache.layers[0][0],
            window=kind.window,
            only_decodes=inputs.max_query_len == 1,
        )
        growth = None
        if kind.query_growth:
            growth = query_growth(inputs.positions, kind)[:, None, None]
        return _AttentionStep(kind.window, cos, sin, plan, growth)

    def _kv_scales_of(self, index: int, kv_cache: KVCache) -> tuple[float, float]:
        """Return a layer's factors from eight-bit keys and values; other caches ignore them."""
        if self.kv_scales is None or not self.kv_scales.keys:
            return kv_cache.k_scale, kv_cache.v_scale
        return self.kv_scales.keys[index], self.kv_scales.values[index]

    def _attend(
        self,
        index: int,
        layer: DecoderLayer,
        x: Tensor | Fp8Rows,
        kv_cache: KVCache,
        inputs: StepInputs,
        steps: list[_AttentionStep],
    ) -> Tensor:
        """Compute one layer's attention, [num_tokens, hidden] from [num_tokens, hidden]."""
        step, (k_cache, v_cache) = steps[layer.attention_kind], kv_cache.layers[index]
        k_scale, v_scale = self._kv_scales_of(index, kv_cache)
        qkv, norms = layer.qkv(x), layer.head_norms
        norms.normalise_all(qkv, self.config.rms_norm_eps, self._backend)
        queries = rope_and_cache(
            qkv,
            k_cache,
            v_cache,
            inputs.slot_mapping,
            step.cos,
            step.sin,
            q_weight=norms.q_weight,
            k_weight=norms.k_weight,
            eps=self.config.rms_norm_eps,
            backend=self._backend,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        attended = paged_attention(
            norms.scale_queries(queries, step.growth),
            k_cache,
            v_cache,
            inputs.block_tables,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            self.config.attention_scale,
            window=step.window,
            plan=step.plan,
            sinks=layer.sinks,
            backend=self._backend,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        return layer.output(attended.flatten(1))
