"""What one step computes, as the scheduler hands it on."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .request import Request


class StepKind(enum.StrEnum):
    """How a step is run."""

    #: Only decodes, replayed from a graph.
    GRAPH = "graph"
    #: Only decodes, kernel by kernel: graphs are off, the batch is too large for them, or a request
    #: has controls that work on whole rows of logits.
    DECODE = "decode"
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


def _no_starts() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScheduledBatch:
    """One step's work, decided.

    Requests that decode come first and are kept apart from the others: each computes its last token
    and samples, so nothing has to be said about them one by one. At 256 of them a tuple for each
    would cost a tenth of the loop's time.
    """

    #: Requests that decode, in order of rank.
    decodes: tuple[Request, ...] = ()
    #: [num_decodes] int64: where each starts, the position of the one token that it computes.
    decode_starts: NDArray[np.int64] = field(default_factory=_no_starts)
    #: Parts of prompts, in order of rank.
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
        starts = self.decode_starts.tolist()
        decodes = zip(self.decodes, starts, strict=True)
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
