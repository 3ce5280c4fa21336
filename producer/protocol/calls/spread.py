"""Calls by which workers share work: asking for jobs that others hold, and finding who asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .call import Argument, Call


class Origin(NamedTuple):
    """What decides whether a pause holds a waiting job back."""

    queue: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Want:
    """A worker's wish for jobs that others hold."""

    #: Session of the worker.
    session: str
    #: Jobs that it may take beyond those that it holds.
    num_places: int
    #: Jobs that it holds.
    num_jobs: int
    #: Tokens per second that its engine computes with full batches; 0 if it was not measured.
    tokens_per_s: float = 0.0


def want(
    wish: Want, *, model: str, identity: str, queues: Sequence[str], ttl_ms: int
) -> Call[bool]:
    """Ask for jobs of other workers for some time; False if jobs wait in the queues.

    Args:
        wish: who asks. Without places, it stops asking, and what was handed to it and not taken is
            announced to all workers.
        model: served name.
        identity: of the engine; jobs of another one could not be continued.
        queues: that the worker takes jobs from.
        ttl_ms: milliseconds for which the wish counts.
    """
    args: list[Argument] = [wish.session, model, identity, ttl_ms, wish.num_places, wish.num_jobs]
    return Call("want", (*args, f"{wish.tokens_per_s:.3f}", *queues), lambda reply: reply == 1)


def take_want(
    giver: Want,
    *,
    model: str,
    identity: str,
    origins: Sequence[Origin],
    least_speedup: float = 1.0,
) -> Call[tuple[Want, frozenset[Origin]] | None]:
    """Find a worker that asks for jobs and is less than half as loaded as the caller.

    No other caller finds the same wish.

    Args:
        giver: describes the caller; its places do not matter.
        model: served name.
        identity: of the engine; jobs of another one could not be continued.
        origins: of the jobs that the caller could give, each once.
        least_speedup: how many times as fast as the caller the other worker must be, by measured
            speeds; 1: of any speed.

    Returns:
        The wish, and those of the origins that no pause holds back. None if no worker asks, or if
        all of them are paused.
    """

    def read(reply: list[Any]) -> tuple[Want, frozenset[Origin]] | None:
        if not reply:
            return None
        name, num_places, num_jobs, speed, *numbers = reply
        tokens_per_s = float(speed) if speed.count(b".") < 2 else 0.0
        known = tokens_per_s if math.isfinite(tokens_per_s) else 0.0
        want = Want(name.decode(errors="replace"), num_places, num_jobs, known)
        return want, frozenset(origins[number - 1] for number in numbers)

    load = (giver.num_jobs, f"{giver.tokens_per_s:.3f}", f"{least_speedup:.3f}")
    names = (name for origin in origins for name in (origin.queue, origin.tenant))
    return Call("take_want", (giver.session, model, identity, *load, *names), read)
