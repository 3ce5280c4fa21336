"""Mixtures of experts whose products are grouped: no length is read on the host.

A step with them can therefore be captured in a CUDA graph. Results are added in the order of the
experts of a token, without atomics: the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.every_size import launches_every_size
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.expert_linear import FoldedActivation, multiply_experts
from batchmill.kernels.ops.experts import combine_experts
from batchmill.kernels.reference.experts import Routing

from .expert_choice import Router
from .model_config import ExpertsConfig
from .weights import ExpertWeights, StackedMatrices

#: First compute capability on which our grouped product runs, and the dtypes of its weights.
_CAPABILITY = (8, 0)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
#: First compute capability on which torch multiplies by all experts in one kernel, in bfloat16;
#: elsewhere it loops over them on the host.
_TORCH_CAPABILITY = (9, 0)
#: It reads rows of weights that start at multiples of so many bytes.
_TORCH_ALIGNMENT = 16
#: Rows of an expert, on average, from which on torch's product is taken where it can be. Below,
#: ours reads each weight once in a tile of as many rows, gathers and activates on the way.
_ROWS_FOR_TORCH = 64


def can_group(weight: StackedMatrices, backend: Backend) -> bool:
    """Return whether products by all experts of a weight need no read on the host.

    `backend="triton"` skips the check of the device, for tests without a GPU.
    """
    if not isinstance(weight, Tensor) or weight.dtype not in _DTYPES:
        return False
    if backend == "triton":
        return True
    if backend != "auto" or weight.device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(weight.device) >= _CAPABILITY


class GroupedExperts:
    """A mixture in two grouped matrix products.

    With few rows per expert a mixture launches six kernels: the router's product, two for the
    routing, two grouped products, of which the first gathers and activates, and the sum. With many,
    and where torch has such a product, a gather and the activation are kernels of their own.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        config: ExpertsConfig,
        activate_and_mul: Callable[[Tensor], Tensor],
        backend: Backend = "auto",
        shared: Callable[[Tensor], Tensor] | None = None,
        *,
        folded: FoldedActivation | None = None,
    ) -> None:
        """Keep the experts.

        Args:
            weights: The router and all experts.
            config: How many experts compute a token, and how they are weighted.
            activate_and_mul: Applied between an expert's two products.
            backend: The backend of our kernels.
            shared: Computes every token beside the experts; None if there is none.
            folded: The same activation, if a product may include it.
        """
        self._backend: Backend = backend
        self._weights = weights
        self._router = Router(weights, config)
        self._shared = shared
        self._num_experts = config.num_experts
        self._activate_and_mul = activate_and_mul
        self._folded = folded
        assert isinstance(weights.gate_up, Tensor), "can_group has checked this"
        assert isinstance(weights.down, Tensor), "it is stored as gate and up are"
        self._gate_up, self._down = weights.gate_up, weights.down
        self._torch_product = _torch_product(self._gate_up, self._down)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        routing = self._router.route(x, self._backend)
        many = len(routing.rows) > _ROWS_FOR_TORCH * self._num_experts
        if self._torch_product is None or not many or launches_every_size():
            computed = self._by_triton(x, routing)
        if self._torch_product is not None and (many or launches_every_size()):
            computed = self._by_torch(self._torch_product, x, routing)
        out = combine_experts(computed, routing, backend=self._backend)
        return out if self._shared is None else out + self._shared(x)

    def _by_triton(self, x: Tensor, routing: Routing) -> Tensor:
        weights, backend = self._weights, self._backend
        hidden = multiply_experts(
            *(x, self._gate_up, routing.ends),
            rows=routing.rows,
            bias=weights.gate_up_bias,
            activation=self._folded,
            backend=backend,
        )
        if self._folded is None:
            hidden = self._activate_and_mul(hidden)
        bias = weights.down_bias
        return multiply_experts(hidden, self._down, routing.ends, bias=bias, backend=backend)

    def _by_torch(self, multiply: Callable[..., Tensor], x: Tensor, routing: Routing) -> Tensor:
        weights = self._weights
        rows = x.index_select(0, routing.rows)
        wide = multiply(rows, self._gate_up.transpose(1, 2), offs=routing.ends)
        hidden = self._activate_and_mul(_add_bias(wide, weights.gate_up_bias, routing))
        computed = multiply(hidden, self._down.transpose(1, 2), offs=routing.ends)
        return _add_bias(computed, weights.down_bias, routing)


def _torch_product(*weights: Tensor) -> Callable[..., Tensor] | None:
    """Return torch's grouped matrix product if it multiplies by these weights in one kernel.

    It has a public and an earlier private name.
    """
    weight = weights[0]
    if weight.device.type != "cuda" or weight.dtype != torch.bfloat16:
        return None
    if any(each.shape[-1] * each.itemsize % _TORCH_ALIGNMENT for each in weights):
        return None
    if torch.cuda.get_device_capability(weight.device) < _TORCH_CAPABILITY:
        return None
    found: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None)
    return found or getattr(torch, "_grouped_mm", None)


def _add_bias(rows: Tensor, bias: Tensor | None, routing: Routing) -> Tensor:
    """Add to each row the bias of its expert, without a read on the host."""
    if bias is None:
        return rows
    numbers = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    return rows + bias.index_select(0, torch.searchsorted(routing.ends, numbers, right=True))
