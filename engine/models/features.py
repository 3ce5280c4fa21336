"""Features of pictures and sounds in the rows of a step."""

from __future__ import annotations

from torch import Tensor

from batchmill.engine.step.step_inputs import StepInputs


def put_features(embedded: Tensor, inputs: StepInputs) -> Tensor:
    """Replace the embeddings of placeholders by features; return the same tensor.

    Args:
        embedded: [num_tokens, hidden], changed.
        inputs: The step's batch.
    """
    if inputs.features is not None:
        embedded.index_copy_(0, inputs.features.token_rows, inputs.features.features)
    return embedded


def add_deepstack(residual: Tensor, layer_index: int, inputs: StepInputs) -> None:
    """Add what a picture's tower gives to the output of one layer, if it gives anything.

    Args:
        residual: [num_tokens, hidden], changed.
        layer_index: Index of the layer whose output it is a part of.
        inputs: The step's batch.

    Source: Meng et al. 2024, "DeepStack", as in Qwen3-VL.
    """
    features = inputs.features
    if features is None or layer_index >= len(features.deepstack):
        return
    residual.index_add_(0, features.token_rows, features.deepstack[layer_index])
