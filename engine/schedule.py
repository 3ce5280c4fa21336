"""What one step computes, as the scheduler hands it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .request import Request


class ScheduledRequest(NamedTuple):
    """One request's share of a step.

    A named tuple, because one is made for each request in each step: it takes a quarter of the
    time that a frozen dataclass takes.
    """

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


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step's work, decided."""

    #: Requests that decode first, then chunks of prompts; each group in order of rank.
    scheduled: tuple[ScheduledRequest, ...]
    #: Requests that lost their blocks in this step and wait again, the last in rank first.
    preempted: tuple[Request, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(item.num_new_tokens for item in self.scheduled)

    @property
    def sampling_requests(self) -> list[Request]:
        """The requests that get a token, in the order of their rows of logits.

        A request's row lies after those of the tokens that it has scored in this step.
        """
        return [item.request for item in self.scheduled if item.samples]
