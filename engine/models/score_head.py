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

    @classmethod
    def of(cls, weight: Tensor, config: Mapping[str, Any]) -> ScoreHead:
        """Return the head with these weights.

        Args:
            weight: [num_labels, hidden].
            config: The model's configuration: `id2label` and `problem_type`.
        """
        return cls(
            weight.to("cpu", torch.float32).numpy(), label_names(config), activation_of(config)
        )

    def outputs(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs for a pooled state, [num_labels] from [hidden]."""
        return self.weight @ state


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
