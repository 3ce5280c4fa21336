"""What one step computes, as the scheduler hands it on."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from batchmill.engine.request.request import Request


class StepKind(enum.StrEnum):
    """How a step is run."""

    #: Only decodes, replayed from a graph.
    GRAPH = "graph"
    #: Only decodes, kernel by kernel: graphs are off, the batch is too large for them, or a request
    #: has controls that work on whole rows of logits.
    DECODE = "decode"
    #: Decodes, some with draft tokens, kernel by kernel.
    SPECULATION = "speculation"
    #: With parts of prompts, kernel by kernel.
    PREFILL = "prefill"


class ScheduledRequest(NamedTuple):
    """One request's share of a step."""

    #: Whose tokens they are.
    request: Request
    #: Tokens in the cache before this step: where this step starts.
    num_computed_tokens: int
    #: Tokens that this step computes.
    num_new_tokens: int
    #: Whether the step reaches the request's last known token, so that a new one is sampled.
    samples: bool
    #: Positions of the request's known tokens that this step scores: their logits are wanted too.
    scored: range = range(0)
    #: Guesses at the tokens that come after the last known one. They are computed with it, so that
    #: a token is drawn at each of them too: it counts where all guesses before it were drawn.
    draft_token_ids: tuple[int, ...] = ()

    @property
    def num_drawn_tokens(self) -> int:
        """Rows of logits that a token is drawn from."""
        return 1 + len(self.draft_token_ids) if self.samples else 0


class CheckedDrafts(NamedTuple):
    """What became of a request's draft tokens in a step."""

    #: Its share of the step.
    item: ScheduledRequest
    #: Tokens drawn for it, as if one after another: one more than drafts were right. None of them
    #: where a row of its logits was not finite: a draft may be to blame.
    token_ids: list[int]

    @property
    def num_accepted(self) -> int:
        """How many draft tokens were right."""
        return max(0, len(self.token_ids) - 1)

    @property
    def num_rejected(self) -> int:
        """How many draft tokens are as if they had not been computed."""
        return len(self.item.draft_token_ids) - self.num_accepted


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScheduledBatch:
    """One step's work, decided.

    Requests that decode come first and are kept apart from the others: each computes its last token
    and samples, so nothing has to be said about them one by one. At 256 of them a tuple for each
    would cost a tenth of the loop's time.
    """

    #: Requests that decode, in order of rank.
    decodes: tuple[Request, ...] = ()
    #: Where each of them starts: the position of the one token that it computes.
    decode_starts: Sequence[int] = ()
    #: Parts of prompts, then requests that decode with draft tokens, each in order of rank.
    chunks: tuple[ScheduledRequest, ...] = ()
    #: Requests that lost their blocks for this step and wait again, the last in rank first.
    preempted: tuple[Request, ...] = ()
    #: Requests admitted on blocks that this very step is to compute.
    unconfirmed: tuple[Request, ...] = ()
    #: Requests that lost their blocks after the step was launched: their tokens of it are void.
    void: set[Request] = field(default_factory=set)

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
        """Whose tokens it computes, in the order of their rows."""
        return [*self.decodes, *[item.request for item in self.chunks]]

    @property
    def sampling_requests(self) -> list[Request]:
        """The requests that get a token, in the order of their rows of logits.

        A request's row lies after those of the tokens that it has scored in this step.
        """
        return [*self.decodes, *[item.request for item in self.chunks if item.samples]]

    @property
    def has_drafts(self) -> bool:
        """Whether draft tokens are computed."""
        return any(item.draft_token_ids for item in self.chunks)

    @property
    def drawing_requests(self) -> list[Request]:
        """`sampling_requests`, once for each row that a token is drawn from."""
        chunks = [[item.request] * item.num_drawn_tokens for item in self.chunks]
        return [*self.decodes, *chain.from_iterable(chunks)]
