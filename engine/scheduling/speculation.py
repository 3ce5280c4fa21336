"""Draft tokens: which requests compute some in a step, and which of them turn out right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchmill.engine.request.request import Request

from .batch_builder import BatchBuilder
from .running_requests import RunningRequests
from .scheduled_batch import CheckedDrafts, ScheduledBatch, ScheduledRequest


@dataclass(frozen=True, slots=True)
class Speculation:
    """Gives requests that decode draft tokens to compute besides their last one.

    Drafts take what is left over: nobody loses a block for one, and none takes the place of a token
    that is known to be right. Few requests decode in one step, or there are no drafts: the weights
    are then read for each step whatever it computes, so more rows take hardly longer.
    """

    #: Most draft tokens of a request in one step.
    num_tokens: int
    #: Most requests that decode in a step with drafts.
    max_num_seqs: int

    def place(
        self, decodes: list[Request], plan: BatchBuilder, running: RunningRequests
    ) -> list[Request]:
        """Schedule the requests that have drafts.

        Args:
            decodes: Each has a slot for its last token, and that is in the plan's budget already.
            plan: Takes them; it has what is computed of prompts already.
            running: Gives them blocks.

        Returns:
            The requests that only decode.
        """
        if len(decodes) > self.max_num_seqs:
            return decodes
        rest: list[Request] = []
        for request in decodes:
            drafts = self._drafts(request, plan.num_free_tokens, running)
            if drafts:
                plan.place_drafts(request, drafts)
            else:
                rest.append(request)
        return rest

    def _drafts(
        self, request: Request, num_free_tokens: int, running: RunningRequests
    ) -> tuple[int, ...]:
        """Draft tokens of a request for which there are budget and slots.

        None while its last token is not known on the host.
        """
        if request.lookup is None or request.num_pending_tokens:
            return ()
        # Where all of them are right, one more token is drawn: that may be the last of the request.
        most = min(
            self.num_tokens, num_free_tokens, request.max_num_tokens - request.num_tokens - 1
        )
        if most <= 0:
            return ()
        drafts = request.lookup.propose(request.output_token_ids, most)
        return drafts[: running.grow_for_drafts(request, len(drafts))]


def check_drafts(
    batch: ScheduledBatch, drawn: Sequence[int | None]
) -> tuple[list[int | None], list[CheckedDrafts]]:
    """Take the tokens that count out of those that a step with drafts drew.

    The token drawn after a draft is the request's own only if that draft is the token that was
    drawn before it. So what is left are the tokens that steps without drafts would have drawn.

    Args:
        batch: The step.
        drawn: One for each of `batch.drawing_requests`; None where a row was not finite.

    Returns:
        One token for each of `batch.sampling_requests`, and what became of the drafts. A request
        with drafts has None, and no token, where any of its rows was not finite.

    Source: speculative decoding, Leviathan et al. 2023, section 2.3, where both distributions are
    one token: here the draw is a function of seed and position.
    """
    token_ids = list(drawn[: len(batch.decodes)])
    checked: list[CheckedDrafts] = []
    row = len(token_ids)
    for item in batch.chunks:
        rows = drawn[row : row + item.num_drawn_tokens]
        row += item.num_drawn_tokens
        token_ids += rows[:1]
        if item.draft_token_ids:
            checked.append(CheckedDrafts(item, _agreed(item, rows)))
            if not checked[-1].token_ids:
                token_ids[-1] = None
    return token_ids, checked


def _agreed(item: ScheduledRequest, drawn: Sequence[int | None]) -> list[int]:
    """The tokens drawn up to the first that its draft is not; none where one was not drawn."""
    token_ids = [each for each in drawn if each is not None]
    if len(token_ids) < len(drawn):
        return []
    num_right = 0
    for draft, token_id in zip(item.draft_token_ids, token_ids, strict=False):
        if draft != token_id:
            break
        num_right += 1
    return token_ids[: num_right + 1]
