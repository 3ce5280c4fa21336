"""Log probabilities and entropies of sampled and known tokens, from the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from batchmill.engine.request.scores import TokenScore


class Scorer:
    """Keeps the distributions of some rows, and scores the tokens sampled from them.

    It must be made before the controls change the logits: reports are about the model's own
    distribution, at temperature 1.
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
        most = min(max(num_top, default=0), logits.shape[1])
        self._top = torch.topk(self._log_probs, most, dim=-1)
        self._asked: Sequence[Sequence[int]] = asked or [()] * len(num_top)
        self._asked_values = self._gather(self._asked)
        self._entropies = [0.0] * len(logits)
        if with_entropy:
            finite = self._log_probs.nan_to_num(neginf=0.0)
            self._entropies = (-(self._log_probs.exp() * finite).sum(dim=-1)).tolist()

    def score(self, token_ids: Sequence[int]) -> list[TokenScore]:
        """Score one token per row."""
        index = torch.tensor(token_ids, dtype=torch.int64, device=self._log_probs.device)
        own = self._log_probs.gather(1, index[:, None])[:, 0].tolist()
        top_values, top_ids = self._top.values.tolist(), self._top.indices.tolist()
        scores = []
        asked_values = None if self._asked_values is None else self._asked_values.tolist()
        for row, (token_id, num_top, entropy) in enumerate(
            zip(token_ids, self._num_top, self._entropies, strict=True)
        ):
            logprobs = {token_id: own[row]}
            for top_id, value in zip(top_ids[row][:num_top], top_values[row], strict=False):
                logprobs.setdefault(top_id, value)
            if asked_values is not None:
                for asked_id, value in zip(self._asked[row], asked_values[row], strict=False):
                    logprobs.setdefault(asked_id, value)
            scores.append(TokenScore(logprobs, entropy))
        return scores

    def _gather(self, asked: Sequence[Sequence[int]]) -> Tensor | None:
        """Return the log probabilities of the tokens asked for, [num_rows, most per row]."""
        most = max(map(len, asked), default=0)
        if not most:
            return None
        padded = [[*each, *[0] * (most - len(each))] for each in asked]
        return self._log_probs.gather(1, torch.tensor(padded, device=self._log_probs.device))
