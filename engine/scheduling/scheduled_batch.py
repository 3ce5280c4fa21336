"""The scheduler's output: the work of one step, and the outcome of its draft tokens."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from batchmill.engine.drafts.drafter import DraftSource
from batchmill.engine.request.request import Request

#: Stands for the token of a row after draft tokens whose controls forbid every token.
NO_TOKEN = -1


class StepKind(enum.StrEnum):
    """How a step is computed."""

    #: Only decodes, replayed from a graph.
    GRAPH = "graph"
    #: Only decodes, kernel by kernel: graphs are off, the batch is too large for them, or a request
    #: has a LoRA adapter.
    DECODE = "decode"
    #: With prompt chunks or draft tokens, replayed from a graph of a padded size.
    PADDED = "padded"
    #: Decodes, some with draft tokens, kernel by kernel.
    SPECULATION = "speculation"
    #: With prompt chunks, kernel by kernel.
    PREFILL = "prefill"


class ScheduledRequest(NamedTuple):
    """One request's share of a step."""

    request: Request
    #: Tokens in the cache before this step: the position at which this step starts.
    num_computed_tokens: int
    #: Tokens that this step computes.
    num_new_tokens: int
    #: Whether the step reaches the request's last known token, so that a new one is sampled.
    needs_sample: bool
    #: Positions of known tokens that this step scores, so their logits are needed too.
    scored: range = range(0)
    #: Draft tokens, computed after the last known token. A token is sampled after each of them as
    #: well. It counts if all drafts before it are accepted.
    draft_token_ids: tuple[int, ...] = ()
    #: Where they come from; None without any.
    draft_source: DraftSource | None = None

    @property
    def num_sampled_tokens(self) -> int:
        """Rows of logits that a token is sampled from."""
        return 1 + len(self.draft_token_ids) if self.needs_sample else 0

    @property
    def pooled_positions(self) -> range:
        """Positions of this step whose final states the pooled request needs; else none."""
        pooling = self.request.pooling
        if pooling is None:
            return range(0)
        start = self.num_computed_tokens
        return pooling.positions_in(start, start + self.num_new_tokens)


class VerifiedDrafts(NamedTuple):
    """The outcome of a request's draft tokens in a step."""

    #: Its share of the step.
    item: ScheduledRequest
    #: The tokens sampled for it, as if one after another: one more than accepted drafts. Empty if
    #: any row of its logits was not finite, because a draft may be to blame.
    token_ids: list[int]

    @property
    def num_accepted(self) -> int:
        """Draft tokens that equal the sampled tokens."""
        return max(0, len(self.token_ids) - 1)

    @property
    def num_rejected(self) -> int:
        """Draft tokens whose computation does not count."""
        return len(self.item.draft_token_ids) - self.num_accepted


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScheduledBatch:
    """The work of one step.

    Decodes come first and are kept apart from the chunks: each computes one token and samples, so
    they need no `ScheduledRequest`. With 256 decodes, building a tuple for each would cost a tenth
    of the loop's time.
    """

    #: Requests that decode, in order of rank.
    decodes: tuple[Request, ...] = ()
    #: For each of `decodes`, the position of the one token that it computes.
    decode_starts: Sequence[int] = ()
    #: Prompt chunks, decodes with draft tokens, and last the chunks of pooled requests, so that
    #: their states follow all rows of logits. Each kind is in order of rank.
    chunks: tuple[ScheduledRequest, ...] = ()
    #: Requests that lost their blocks for this step and wait again, the last in rank first.
    preempted: tuple[Request, ...] = ()
    #: Requests admitted on blocks that this very step computes.
    in_batch_sharers: tuple[Request, ...] = ()
    #: Whether any of its requests has a LoRA adapter.
    has_adapters: bool = False
    #: Whether any of its requests is steered.
    is_steered: bool = False
    #: Requests that lost their blocks after the launch: their tokens of this step are discarded.
    discarded: set[Request] = field(default_factory=set)

    @property
    def num_seqs(self) -> int:
        """Requests that the step computes."""
        return len(self.decodes) + len(self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.decodes) + sum(item.num_new_tokens for item in self.chunks)

    @property
    def scheduled(self) -> tuple[ScheduledRequest, ...]:
        """All shares, in the order of their rows."""
        decodes = zip(self.decodes, self.decode_starts, strict=True)
        return (*(ScheduledRequest(each, at, 1, True) for each, at in decodes), *self.chunks)

    @property
    def requests(self) -> list[Request]:
        """The requests that the step computes, in the order of their rows."""
        return [*self.decodes, *[item.request for item in self.chunks]]

    @property
    def sampled_requests(self) -> list[Request]:
        """The requests that get a token, in the order of their rows of logits.

        A request's row comes after the rows of the known tokens that it scores in this step.
        """
        return [*self.decodes, *[item.request for item in self.chunks if item.needs_sample]]

    @property
    def num_guides(self) -> int:
        """Requests that guide another one."""
        return sum(request.is_guide for request in self.requests)

    @property
    def pooled(self) -> tuple[ScheduledRequest, ...]:
        """The shares of pooled requests."""
        return tuple(item for item in self.chunks if item.request.pooling is not None)

    def without_pooled_samples(self) -> ScheduledBatch:
        """Return the batch as the sampler sees it: pooled requests need no token."""
        if not self.chunks or self.chunks[-1].request.pooling is None:
            return self
        chunks = (
            each if each.request.pooling is None else each._replace(needs_sample=False)
            for each in self.chunks
        )
        return replace(self, chunks=tuple(chunks))

    @property
    def has_drafts(self) -> bool:
        """Whether draft tokens are computed."""
        return any(item.draft_token_ids for item in self.chunks)

    @property
    def drafts_of_rows(self) -> dict[int, tuple[int, ...]]:
        """The draft tokens before each sampling row that comes after any."""
        if not self.has_drafts:
            return {}
        found: dict[int, tuple[int, ...]] = {}
        row = len(self.decodes)
        for item in self.chunks:
            for number in range(1, len(item.draft_token_ids) + 1):
                found[row + number] = item.draft_token_ids[:number]
            row += item.num_sampled_tokens
        return found

    @property
    def request_of_each_row(self) -> list[Request]:
        """`sampled_requests`, repeated for each row that a token is sampled from."""
        chunks = [[item.request] * item.num_sampled_tokens for item in self.chunks]
        return [*self.decodes, *chain.from_iterable(chunks)]
