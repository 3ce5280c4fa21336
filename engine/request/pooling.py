"""Pooled requests: what they ask for, and the states of the model that are gathered for them.

A pooled request generates nothing. It is a prompt whose final states leave the engine as one vector
(an embedding) or as the outputs of a classification head (scores). No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.pooling import check_pooling
from batchmill.engine.errors import RequestError

#: The token that stands for the vector of a pooled request, where the scheduler expects a token.
VECTOR_TOKEN: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What a pooled request asks for.

    Raises:
        RequestError: `invalid_request`: a value cannot work; the message names it and the remedy.
    """

    #: "embed" returns a vector; "score" the outputs of the model's classification head.
    task: str = "embed"
    #: Which states make the vector: "last" (of the last token), "mean" (over all tokens), "cls" (of
    #: the first token; encoders only); None is what the model's files say, and else "last".
    pooling: str | None = None
    #: Keep only the first so many numbers of the vector, for models that were trained for it
    #: (Kusupati et al. 2022, Matryoshka representation learning); None keeps all.
    dimensions: int | None = None
    #: Scale the vector to length 1; None is what the model's files say, and else true.
    normalize: bool | None = None
    #: Function on the outputs of the head: "sigmoid", "softmax" or "none"; None is what the model's
    #: files say: "sigmoid" for one output or several labels at once, else "softmax".
    activation: str | None = None
    #: Which side of a prompt is cut that exceeds the model's length: "start" or "end"; None refuses
    #: such a prompt.
    truncate: str | None = None

    def __post_init__(self) -> None:
        try:
            check_pooling(self.task, asdict(self))
        except ContractError as refusal:
            raise RequestError.of(refusal) from None


class PooledStates:
    """Gathers the final states of one request's tokens, chunk by chunk.

    A chunk that begins at position 0 starts over. So a request that lost its blocks, or whose step
    failed, gathers the same states again.

    Attributes:
        params: What the request asks for.
        pooling: Which states count: "last", "mean" or "cls".
        num_tokens: Tokens of its prompt.
        is_whole: Whether its tokens see each other, so that they are computed in one step and share
            nothing with other prompts.
        type_ids: Which text of a pair each token belongs to; None if it is all one text.
    """

    def __init__(
        self,
        params: PoolingParams,
        num_tokens: int,
        *,
        pooling: str = "last",
        is_whole: bool = False,
        type_ids: Sequence[int] | None = None,
    ) -> None:
        self.params = params
        self.pooling = pooling
        self.num_tokens = num_tokens
        self.is_whole = is_whole
        self.type_ids = type_ids
        # In float64, so that the sum hardly depends on how the prompt was split into chunks.
        self._sum: NDArray[np.float64] | None = None
        self._num_summed = 0
        #: The result, once the last token is computed: an embedding or scores, float32.
        self.vector: NDArray[np.float32] | None = None

    @property
    def needs_every_state(self) -> bool:
        """Whether each token's state counts."""
        return self.pooling == "mean"

    @property
    def reads_cache(self) -> bool:
        """Whether a cached prefix saves work: it holds keys and values, and no states."""
        return not (self.is_whole or self.needs_every_state)

    def positions_in(self, start: int, stop: int) -> range:
        """Return the positions from `start` to below `stop` whose final states are needed."""
        if self.needs_every_state:
            return range(start, stop)
        if self.pooling == "cls":
            return range(1) if start == 0 and stop else range(0)
        return range(stop - 1, stop) if stop == self.num_tokens else range(0)

    def put(self, start: int, stop: int, summed: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """Add the states of a chunk.

        Args:
            start: Position of its first token.
            stop: Position after its last token.
            summed: [hidden], the sum of the states at `positions_in(start, stop)`.

        Returns:
            The pooled state, [hidden], once all tokens are there; None before.
        """
        if not self.needs_every_state:
            return summed.astype(np.float32) if stop == self.num_tokens else None
        if start == 0:
            self._sum, self._num_summed = summed.copy(), stop
        elif start == self._num_summed and self._sum is not None:
            self._sum += summed
            self._num_summed = stop
        if self._num_summed < self.num_tokens or self._sum is None:
            return None
        return (self._sum / self.num_tokens).astype(np.float32)


def finish_embedding(state: NDArray[np.float32], params: PoolingParams) -> NDArray[np.float32]:
    """Return the embedding that a pooled state makes: cut to `dimensions`, then scaled.

    Args:
        state: [hidden] float32.
        params: `dimensions` and `normalize` are read.
    """
    vector = state if params.dimensions is None else state[: params.dimensions]
    if not params.normalize:
        return np.ascontiguousarray(vector)
    length = np.float32(np.linalg.norm(vector))
    # As torch's `normalize`: a vector of zeros stays one.
    scaled: NDArray[np.float32] = vector / np.maximum(length, np.float32(1e-12))
    return scaled


def finish_scores(outputs: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """Return the scores that the outputs of a head make.

    Args:
        outputs: [num_labels] float32.
        activation: "sigmoid", "softmax" or "none".
    """
    if activation == "none":
        return outputs
    if activation == "sigmoid":
        # In the form that does not overflow.
        shares: NDArray[np.float32] = (np.tanh(outputs * np.float32(0.5)) + 1) * np.float32(0.5)
        return shares
    powers = np.exp(outputs - outputs.max())
    return np.asarray(powers / powers.sum())
