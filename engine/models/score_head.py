"""The classification head of a model, computed on the host: it is one small matrix product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScoreHead:
    """A linear layer over a pooled state, and what its outputs mean."""

    #: [num_labels, hidden] float32.
    weight: NDArray[np.float32]
    #: One name per output.
    labels: tuple[str, ...]
    #: Function on the outputs if a request names none: "sigmoid", "softmax" or "none".
    activation: str
    #: [num_labels] float32; None adds nothing.
    bias: NDArray[np.float32] | None = None
    #: A layer before it, with tanh: [hidden, hidden] and [hidden]; None if there is none.
    dense: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @classmethod
    def of(
        cls,
        weight: Tensor,
        config: Mapping[str, Any],
        *,
        bias: Tensor | None = None,
        dense: tuple[Tensor, Tensor] | None = None,
    ) -> ScoreHead:
        """Return the head with these weights.

        Args:
            weight: [num_labels, hidden].
            config: The model's configuration: `id2label` and `problem_type`.
            bias: [num_labels], or None.
            dense: Weight and bias of a layer before it, or None.
        """
        return cls(
            _on_host(weight),
            label_names(config),
            activation_of(config),
            None if bias is None else _on_host(bias),
            None if dense is None else (_on_host(dense[0]), _on_host(dense[1])),
        )

    def outputs(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs for a pooled state, [num_labels] from [hidden]."""
        if self.dense is not None:
            state = np.tanh(self.dense[0] @ state + self.dense[1])
        outputs: NDArray[np.float32] = self.weight @ state
        return outputs if self.bias is None else outputs + self.bias


def _on_host(weight: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = weight.to("cpu", torch.float32).numpy()
    return numbers


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a classification head's outputs, in their order."""
    named = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    return tuple(str(name) for _, name in sorted(named.items(), key=lambda pair: int(pair[0])))


def activation_of(config: Mapping[str, Any]) -> str:
    """Return the function on the outputs that transformers' pipeline applies to such a model.

    Source: `TextClassificationPipeline` of transformers.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    is_single = len(label_names(config)) == 1
    return "sigmoid" if is_single or problem == "multi_label_classification" else "softmax"
