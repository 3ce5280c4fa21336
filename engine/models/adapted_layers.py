"""The layers of the native decoder with LoRA adapters, beside those without.

A step without adapters runs the plain layers, which know nothing of adapters. The layers in one C++
call add adapters themselves. All other steps with adapters run these: the same weights, with
`LoraLinear` around each matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from batchmill.engine.step.adapter_rows import AdapterRows
from batchmill.engine.step.adapter_tiles import RecordedAdapters
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.linear import Linear
from batchmill.kernels.ops.lora import add_lora, add_lora_tiles
from batchmill.kernels.reference.lora import LoraRows

from .decoder_layer import DecoderLayer
from .families import FAMILIES, family_name
from .feed_forward import GatedNetwork
from .interleaved_rope import qkv_row_order
from .model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LoraSite:
    """One matrix of a layer that an adapter may change.

    Attributes:
        modules: Hugging Face's names of the matrices that it consists of, within the layer.
        widths: Output columns of each of them.
        in_features: Columns of its argument.
        row_order: Which stored row each of its rows is; empty if they are in one order.
    """

    modules: tuple[str, ...]
    widths: tuple[int, ...]
    in_features: int
    row_order: tuple[int, ...] = ()


def lora_sites(config: ModelConfig) -> list[list[LoraSite]]:
    """Return the sites of every layer, in the order of `LoraWeights`.

    A mixture of experts has sites in its attention only.
    """
    names = FAMILIES[family_name(config.architecture)].names
    head = config.head_dim
    q_width, kv_width = config.num_heads * head, config.num_kv_heads * head
    widths = _parts(names.qkv, (q_width, kv_width, kv_width))
    qkv = LoraSite(names.qkv, widths, config.hidden_size, qkv_row_order(config))
    output = LoraSite(("self_attn.o_proj",), (config.hidden_size,), q_width)
    inner = config.intermediate_size
    gate_up = LoraSite(names.gate_up, _parts(names.gate_up, (inner, inner)), config.hidden_size)
    down = LoraSite(("mlp.down_proj",), (config.hidden_size,), inner)
    attention, network = [qkv, output], [gate_up, down]
    return [attention if layer.sparse else [*attention, *network] for layer in config.layers]


def _parts(names: tuple[str, ...], widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths of a matrix that the checkpoint stores in one piece, or in several."""
    return widths if len(names) == len(widths) else (sum(widths),)


class StepAdapters:
    """The adapters of the step that is being computed; `LoraLinear` reads them."""

    def __init__(self) -> None:
        self.groups: tuple[AdapterRows, ...] = ()
        self.recorded: RecordedAdapters | None = None


class LoraLinear:
    """A matrix product to which the adapters of the step add their part."""

    def __init__(
        self,
        linear: Linear,
        site: LoraSite,
        index: tuple[int, int],
        step: StepAdapters,
        backend: Backend,
        *,
        of_samples: bool = False,
    ) -> None:
        """Wrap a product.

        Args:
            linear: The product without adapters.
            site: Which matrix it multiplies by.
            index: Its layer and its place among the sites there.
            step: The adapters of the current step.
            backend: Of `add_lora`.
            of_samples: Whether it computes the rows that sample, not those of all tokens.
        """
        self._linear = linear
        self._widths = site.widths
        self._layer, self._site = index
        self._step = step
        self._backend = backend
        self._of_samples = of_samples

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_rows, out] from [num_rows, in]."""
        out = self._linear(x)
        recorded = self._step.recorded
        if recorded is not None:
            tiles = recorded.tiles_of(self._layer, self._site, of_samples=self._of_samples)
            add_lora_tiles(out, x, tiles, self._widths, backend=self._backend)
            return out
        groups = []
        for each in self._step.groups:
            pair = each.owner.layers[self._layer][self._site]
            rows = each.sample_rows if self._of_samples else each.token_rows
            if pair is not None and len(rows):
                groups.append(LoraRows(rows, pair))
        if groups:
            add_lora(out, x, groups, self._widths, backend=self._backend)
        return out


def adapt_layers(
    layers: Sequence[DecoderLayer], config: ModelConfig, step: StepAdapters, backend: Backend
) -> list[DecoderLayer]:
    """Return layers over the same weights to which the adapters of the step add their part."""
    adapted = []
    for index, (layer, sites) in enumerate(zip(layers, lora_sites(config), strict=True)):
        wrap = partial(_wrap, index=index, sites=sites, step=step, backend=backend)
        # After the attention of the last layer, only the rows that sample are left.
        wrap_last = partial(wrap, of_samples=index == len(layers) - 1)
        network = layer.feed_forward
        if isinstance(network, GatedNetwork):
            network = network.wrapped(partial(wrap_last, site=2), partial(wrap_last, site=3))
        adapted.append(
            replace(
                layer,
                qkv=wrap(layer.qkv, site=0),
                output=wrap(layer.output, site=1),
                feed_forward=network,
            )
        )
    return adapted


def _wrap(
    linear: Linear,
    *,
    site: int,
    index: int,
    sites: Sequence[LoraSite],
    step: StepAdapters,
    backend: Backend,
    of_samples: bool = False,
) -> LoraLinear:
    return LoraLinear(linear, sites[site], (index, site), step, backend, of_samples=of_samples)
