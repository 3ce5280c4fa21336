"""Which jobs of a busy worker go to a worker that has room, if any."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from batchmill.producer.protocol.attempts import AttemptCause
from batchmill.producer.protocol.calls.spread import Want

from .active_job import ActiveJob

#: Most jobs that one offer moves. Another offer may follow a second later.
_MAX_MOVED: Final = 16
#: A job that was moved stays where it is for so long, seconds.
_REST_S: Final = 60.0
#: Moves of a job in its whole life; its history shows about twice as many attempts.
_MAX_MOVES: Final = 8
#: The least time that a running job must have left to be moved to any worker, seconds.
_LEAST_LEFT_S: Final = 3.0
#: With less time left, what a faster worker must gain by its speed alone: a move takes about this.
_LEAST_GAIN_S: Final = 1.0
#: New tokens of a job that tell its speed.
_LEAST_TOKENS: Final = 8
#: Tokens of a prompt, or of an earlier attempt, that an engine computes in the time of one new one:
#: 10 to 60 on CPUs, more on GPUs.
_PREFILL_FACTOR: Final = 10
#: Bytes of a job's document per token; the same estimate as for its cost.
_BYTES_PER_TOKEN: Final = 4


class OutputShare:
    """How much of `max_tokens` jobs have used lately, on average."""

    _WEIGHT: Final = 0.05

    def __init__(self) -> None:
        self.mean = 1.0

    def note(self, num_tokens: int, max_tokens: int | None) -> None:
        """Count a job that has ended by itself."""
        if max_tokens:
            self.mean += self._WEIGHT * (min(1.0, num_tokens / max_tokens) - self.mean)


def speedup_of(want: Want, tokens_per_s: float | None) -> float:
    """Return how many times as fast as a worker the one that asks is.

    1 if one of the speeds was not measured.

    Args:
        want: the other worker's wish.
        tokens_per_s: the worker's own speed; None if it was not measured.
    """
    if not tokens_per_s or not want.tokens_per_s:
        return 1.0
    return want.tokens_per_s / tokens_per_s


def num_due(num_jobs: int, speedup: float, want: Want) -> int:
    """Return how many of its jobs a worker should give to another one.

    Afterwards each has jobs in proportion to its speed.

    Args:
        num_jobs: that the worker holds.
        speedup: of the other worker over this one.
        want: the other worker's wish.
    """
    balanced = num_jobs - (num_jobs + want.num_jobs) / (1 + speedup)
    return max(0, min(int(balanced), want.num_places, _MAX_MOVED, num_jobs - 1))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that may go to another worker."""

    job: ActiveJob
    #: How many times as fast as this worker the other one must be at least; 1: any.
    least_speedup: float


def list_candidates(
    jobs: Sequence[ActiveJob], *, num_waiting: int, output_share: float
) -> list[Candidate]:
    """Return the jobs that may go: first those that wait in the engine, then running ones.

    Of the former, those that were claimed last; of the latter, those with most tokens left.

    Args:
        jobs: all jobs of the worker, in the order of their claims.
        num_waiting: requests that the engine has not started.
        output_share: of `max_tokens` that jobs use on average.
    """
    free = [job for job in jobs if may_leave(job) and _may_move(job)]
    not_started = [job for job in free if job.first_token_at is None]
    waiting = not_started[::-1][:num_waiting]
    running = [
        Candidate(job, speedup)
        for job in free
        if job not in waiting and (speedup := _least_speedup(job, output_share)) < math.inf
    ]
    running.sort(key=lambda each: num_left(each.job, output_share), reverse=True)
    return [*(Candidate(job, 1.0) for job in waiting), *running]


def may_leave(job: ActiveJob) -> bool:
    """Return whether a job can be given back before its end and go on later."""
    if job.stopping is not None or job.leaving is not None or not job.is_in_engine:
        return False
    if job.group_limit is not None:  # its engine is chosen with care
        return False
    # It is not stored how far a plan of requests has come.
    return job.request.section is None


def num_new_tokens(job: ActiveJob) -> int:
    """Return the tokens of this attempt."""
    return len(job.token_ids) - len(job.claim.token_ids)


def num_left(job: ActiveJob, output_share: float) -> float:
    """Return about how many tokens a job has yet to generate."""
    max_tokens = job.request.params.get("max_tokens") or 0
    return max_tokens * output_share - len(job.token_ids)


def pays_off(job: ActiveJob, num_left: float) -> bool:
    """Return whether far more tokens are left than an engine would compute again."""
    if int(job.request.params.get("n") or 1) > 1:
        return False  # of several samples, only the first one's tokens are stored
    num_again = len(job.token_ids) + len(job.claim.document) / _BYTES_PER_TOKEN
    return num_left >= num_again / _PREFILL_FACTOR


def _may_move(job: ActiveJob) -> bool:
    causes = [attempt.cause for attempt in job.claim.history]
    if causes.count(AttemptCause.MOVED) >= _MAX_MOVES:
        return False
    return not causes or causes[-1] != AttemptCause.MOVED or job.waited_s > _REST_S


def _least_speedup(job: ActiveJob, output_share: float) -> float:
    """Return how much faster a worker must be for a running job to go there; infinite: it stays.

    A job that has long to go gains by the smaller batches of both workers. A shorter one goes only
    to a worker that is faster by so much that it ends sooner there, whatever the batches.
    """
    num_new = num_new_tokens(job)
    if job.first_token_at is None or num_new < _LEAST_TOKENS:
        return math.inf
    left = num_left(job, output_share)
    left_s = left * (time.monotonic() - job.first_token_at) / num_new
    if left_s <= _LEAST_GAIN_S or not pays_off(job, left):
        return math.inf
    return 1.0 if left_s >= _LEAST_LEFT_S else left_s / (left_s - _LEAST_GAIN_S)
