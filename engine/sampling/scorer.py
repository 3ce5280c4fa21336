"""Log probabilities and entropies of sampled and known tokens, from the logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.scores import TokenScore
from batchmill.engine.step.upload import Uploader


class Scorer:
    """Keeps the distributions of some rows, and scores one token of each.

    It must be made before the controls change the logits: reports are about the model's own
    distribution, at temperature 1. Nothing is read on the host before `CopiedScores.read`.
    """

    def __init__(
        self,
        logits: Tensor,
        num_top: Sequence[int],
        asked: Sequence[Sequence[int]] | None = None,
        *,
        with_entropy: bool,
    ) -> None:
        """Compute the distributions of some rows.

        Args:
            logits: [num_rows, vocab_size] float32; not changed, and not read later.
            num_top: Per row, how many likeliest tokens to report.
            asked: Per row, token ids to report as well; None for none.
            with_entropy: Whether to compute entropies; they are 0 otherwise.
        """
        self._log_probs = torch.log_softmax(logits, dim=-1)
        self._num_top = num_top
        self._most = min(max(num_top, default=0), logits.shape[1])
        self._top = torch.topk(self._log_probs, self._most, dim=-1)
        self._asked: Sequence[Sequence[int]] = asked or [()] * len(num_top)
        self._entropies = self._log_probs.new_zeros(len(logits))
        if with_entropy:
            self._entropies = entropies_of(self._log_probs)

    def begin_copy(self, token_ids: Tensor) -> CopiedScores:
        """Score one token per row, [num_rows] int64 on the logits' device; begin the copy."""
        parts = [
            self._entropies[:, None],
            self._log_probs.gather(1, token_ids[:, None]),
            self._top.values,
            *self._gather_asked(),
        ]
        return CopiedScores(
            torch.cat(parts, dim=1), self._top.indices, self._num_top, self._asked, self._most
        )

    def _gather_asked(self) -> list[Tensor]:
        """Return the log probabilities of the tokens asked for, [num_rows, most per row]."""
        most = max(map(len, self._asked), default=0)
        if not most:
            return []
        padded = np.array([[*each, *[0] * (most - len(each))] for each in self._asked])
        (index,) = Uploader(self._log_probs.device).upload(padded)
        return [self._log_probs.gather(1, index)]


class CopiedScores:
    """Scores on their way from the device to the host."""

    def __init__(
        self,
        numbers: Tensor,
        top_ids: Tensor,
        num_top: Sequence[int],
        asked: Sequence[Sequence[int]],
        most: int,
    ) -> None:
        """Queue the copy on the device's stream.

        Args:
            numbers: [num_rows, 2 + most + asked] float32: entropy, the token's own log probability,
                those of the likeliest, and those asked for.
            top_ids: [num_rows, most] int64.
            num_top: Per row, how many likeliest tokens to report.
            asked: Per row, token ids to report as well.
            most: Likeliest tokens in `numbers`.
        """
        self._numbers, self._top_ids = _begin_copy(numbers), _begin_copy(top_ids)
        self._num_top, self._asked, self._most = num_top, asked, most

    def read(self, token_ids: Sequence[int]) -> list[TokenScore]:
        """Return the scores, once the copy is done.

        Args:
            token_ids: The tokens of `Scorer.begin_copy`.
        """
        scores = []
        for numbers, top_ids, token_id, num_top, asked in zip(
            self._numbers.tolist(),
            self._top_ids.tolist(),
            token_ids,
            self._num_top,
            self._asked,
            strict=True,
        ):
            entropy, own, *others = numbers
            logprobs = {token_id: own}
            for top_id, value in zip(top_ids[:num_top], others, strict=False):
                logprobs.setdefault(top_id, value)
            for asked_id, value in zip(asked, others[self._most :], strict=False):
                logprobs.setdefault(asked_id, value)
            scores.append(TokenScore(logprobs, entropy))
        return scores


class PackedScores:
    """Scores on their way from the device to the host, in one array."""

    __slots__ = ("_num_top", "_on_host")

    def __init__(self, on_host: NDArray[np.float32], num_top: Sequence[int]) -> None:
        """Keep the array, to which a copy is queued.

        Args:
            on_host: [num_rows or more, 2 + 2 * most] float32: entropy, the token's own log
                probability, and for each of the likeliest tokens its log probability and its id.
                Ids below 2**24 are exact in float32.
            num_top: Per row, how many likeliest tokens to report.
        """
        self._on_host, self._num_top = on_host, num_top

    def read(self, token_ids: Sequence[int]) -> list[TokenScore]:
        """Return the scores, once the copy is done; see `CopiedScores.read`."""
        scores = []
        for row, token_id, num_top in zip(self._on_host, token_ids, self._num_top, strict=False):
            entropy, own, *pairs = row[: 2 + 2 * num_top].tolist()
            logprobs = {token_id: own}
            for place in range(0, len(pairs), 2):  # a small vocabulary has fewer than `num_top`
                logprobs.setdefault(int(pairs[place + 1]), pairs[place])
            scores.append(TokenScore(logprobs, entropy))
        return scores


def entropies_of(log_probs: Tensor) -> Tensor:
    """Return the entropy of each row of log probabilities, nats; impossible tokens add nothing."""
    finite = log_probs.nan_to_num(neginf=0.0)
    return -(log_probs.exp() * finite).sum(dim=-1)


def _begin_copy(values: Tensor) -> Tensor:
    """Queue a copy to the host; on a CPU there is nothing to copy."""
    if values.device.type == "cpu":
        return values
    is_cuda = values.device.type == "cuda"
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=is_cuda)
    return on_host.copy_(values, non_blocking=True)
