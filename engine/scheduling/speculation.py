"""Speculative decoding: which requests compute draft tokens in a step, and which are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from batchmill.engine.drafts.drafter import Draft, DraftLimits
from batchmill.engine.request.request import Request

from .batch_builder import BatchBuilder
from .running_requests import RunningRequests
from .scheduled_batch import NO_TOKEN, ScheduledBatch, ScheduledRequest, VerifiedDrafts

#: Least probability that all draft tokens from a corpus are right: a step of few requests spends
#: its time on the weights, so a rejected token costs little; in a larger one, it costs as much as
#: the token of another request.
_PROBABILITY_IN_SMALL_STEPS: Final = 0.3
_PROBABILITY_IN_LARGE_STEPS: Final = 0.6


@dataclass(frozen=True, slots=True)
class Speculation:
    """Adds draft tokens to decodes.

    Drafts use only the budget and blocks that are left over: no request loses a block to a draft,
    and no draft displaces a known token. While few requests decode, a step spends its time on
    reading the weights, so more rows hardly make it longer; in larger steps there are only drafts
    that are probable.
    """

    #: Most draft tokens of a request in one step that were looked up.
    num_tokens: int
    #: Most requests that decode in a step with tokens that were looked up.
    max_num_seqs: int
    #: Most draft tokens of a request in one step that its structure forces. They are nearly always
    #: accepted, so they are worth their rows in steps of any size.
    num_forced_tokens: int = 0
    #: Most draft tokens of a request in one step that come from a corpus. In steps of more than
    #: `max_num_seqs` decodes they must be more probable.
    num_corpus_tokens: int = 0

    def add_drafts(
        self, decodes: list[Request], builder: BatchBuilder, running: RunningRequests
    ) -> list[Request]:
        """Move the decodes that have draft tokens into the builder.

        Args:
            decodes: Each has a slot for its last token, which the builder's budget already counts.
            builder: Takes the drafts; it already has the prompt chunks.
            running: Allocates their blocks.

        Returns:
            The decodes without draft tokens.
        """
        limits = self._limits(len(decodes))
        if not any(request.drafter is not None for request in decodes):
            return decodes
        rest: list[Request] = []
        for request in decodes:
            # None while the request's last token is not known on the host.
            if request.drafter is None or request.num_pending_tokens:
                rest.append(request)
                continue
            most = min(builder.num_free_drafts, request.max_num_tokens - request.num_tokens - 1)
            # If all of them are accepted, one more is sampled, which may be the request's last.
            draft = request.drafter.propose(request.output_token_ids, limits.within(most))
            num_slots = 0
            if draft is not None:
                num_slots = running.allocate_for_drafts(request, len(draft.token_ids))
            if draft is None or num_slots == 0:
                rest.append(request)
            else:
                builder.add_drafts(request, Draft(draft.token_ids[:num_slots], draft.source))
        return rest

    def _limits(self, num_decodes: int) -> DraftLimits:
        """Return the most draft tokens of each request of a step with so many decodes."""
        is_small = num_decodes <= self.max_num_seqs
        return DraftLimits(
            self.num_forced_tokens,
            self.num_corpus_tokens,
            _PROBABILITY_IN_SMALL_STEPS if is_small else _PROBABILITY_IN_LARGE_STEPS,
            self.num_tokens if is_small else 0,
        )

    def pays_for(self, running: Sequence[Request]) -> bool:
        """Return whether drafts gain more than to schedule a step while the one before it runs.

        Drafts continue from known tokens, so a request gets none while its last token is pending.
        If half of the running requests may get some, the steps saved are worth more.
        """
        drafters = (each.drafter for each in running)
        num_drafting = sum(each is not None and each.can_propose for each in drafters)
        return 2 * num_drafting >= len(running)


def verify_drafts(
    batch: ScheduledBatch, sampled: Sequence[int | None]
) -> tuple[list[int | None], list[VerifiedDrafts]]:
    """Select the tokens that count from those that a step with drafts sampled.

    The token sampled after a draft counts only if that draft equals the token sampled before it. So
    the remaining tokens are the ones that steps without drafts would have sampled.

    Args:
        batch: The step.
        sampled: One per row, as in `batch.request_of_each_row`; None if the row was not finite.

    Returns:
        One token per request in `batch.sampled_requests`, and the outcome of the drafts. A request
        with drafts has None and no token if any of its rows was not finite.

    Source: speculative decoding, Leviathan et al. 2023, section 2.3, for distributions that are one
    token each: here a sampled token is a function of seed and position.
    """
    token_ids = list(sampled[: len(batch.decodes)])
    verified: list[VerifiedDrafts] = []
    row = len(token_ids)
    for item in batch.chunks:
        rows = sampled[row : row + item.num_sampled_tokens]
        row += item.num_sampled_tokens
        token_ids += rows[:1]
        if item.draft_token_ids:
            verified.append(VerifiedDrafts(item, _accepted_tokens(item, rows)))
            if not verified[-1].token_ids:
                token_ids[-1] = None
    return token_ids, verified


def _accepted_tokens(item: ScheduledRequest, sampled: Sequence[int | None]) -> list[int]:
    """Return the sampled tokens up to the first that differs from its draft; [] if one is None."""
    token_ids = [each for each in sampled if each is not None]
    if len(token_ids) < len(sampled):
        return []
    # Without a token after its drafts the request continues from the drafts alone.
    if NO_TOKEN in token_ids:
        token_ids = token_ids[: token_ids.index(NO_TOKEN)]
    num_accepted = 0
    for draft, token_id in zip(item.draft_token_ids, token_ids, strict=False):
        if draft != token_id:
            break
        num_accepted += 1
    return token_ids[: num_accepted + 1]
