"""Which jobs of a busy worker go to a worker that has room, if any."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
#: The least time that a running job must have left to be moved, seconds: a move takes about one.
_LEAST_LEFT_S: Final = 3.0
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


def num_due(num_jobs: int, tokens_per_s: float | None, want: Want) -> int:
    """Return how many of its jobs a worker should give to another one.

    Afterwards each has jobs in proportion to its speed; if one speed is unknown, both count as
    equally fast.

    Args:
        num_jobs: that the worker holds.
        tokens_per_s: its speed; None if it was not measured.
        want: the other worker's wish.
    """
    mine, theirs = tokens_per_s or 0.0, want.tokens_per_s
    if not mine or not theirs:
        mine = theirs = 1.0
    balanced = (num_jobs * theirs - want.num_jobs * mine) / (mine + theirs)
    return max(0, min(int(balanced), want.num_places, _MAX_MOVED, num_jobs - 1))


def select_jobs(
    jobs: Sequence[ActiveJob], num_due: int, *, num_waiting: int, output_share: float
) -> list[ActiveJob]:
    """Return the jobs to give away: first those that wait in the engine, then running ones.

    Of the former, those that were claimed last; of the latter, those with most tokens left.

    Args:
        jobs: all jobs of the worker, in the order of their claims.
        num_due: how many it should give.
        num_waiting: requests that the engine has not started.
        output_share: of `max_tokens` that jobs use on average.
    """
    free = [job for job in jobs if may_leave(job) and _may_move(job)]
    not_started = [job for job in free if job.first_token_at is None]
    waiting = not_started[::-1][:num_waiting]
    running = [job for job in free if job not in waiting and _pays(job, output_share)]
    running.sort(key=lambda job: num_left(job, output_share), reverse=True)
    return [*waiting, *running][:num_due]


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


def _pays(job: ActiveJob, output_share: float) -> bool:
    """Return whether a running job has much more to compute than would be computed again."""
    num_new = num_new_tokens(job)
    if job.first_token_at is None or num_new < _LEAST_TOKENS:
        return False
    left = num_left(job, output_share)
    token_s = (time.monotonic() - job.first_token_at) / num_new
    return left * token_s >= _LEAST_LEFT_S and pays_off(job, left)
