"""How far jobs are (`JobProgress`, `ProgressSummary`), as values and in words.

Every entrance describes a wait by the same words: `describe` of these classes makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from batchmill.producer.plural import pluralize
from batchmill.producer.protocol.replies import JobState

_CONFIG = ConfigDict(frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)
#: Models that a sentence names; a list in a program has all of them.
_MAX_NAMED_MODELS: Final = 8


class EtaUnknown(StrEnum):
    """Why the end cannot be estimated."""

    #: No worker serves the job's queue.
    NO_WORKER = "no_worker"
    #: Workers serve it, but none has generated anything in the last seconds.
    NO_SPEED = "no_speed"
    #: It waits for the end of its delay, or for its retry.
    SCHEDULED = "scheduled"
    #: Its record does not say how many tokens it may generate.
    NO_LENGTH = "no_length"
    #: Its queue or tenant is paused; see `pause`.
    PAUSED = "paused"


_REASONS: Final = {
    EtaUnknown.NO_SPEED: "no worker has generated tokens in the last seconds",
    EtaUnknown.SCHEDULED: "its delay is not over",
    EtaUnknown.NO_LENGTH: "its maximum length is unknown",
    EtaUnknown.PAUSED: "it is paused",
}


class _Progress(BaseModel):
    """What the progress of one job and of many have in common."""

    model_config = _CONFIG

    eta_s: float | None = None
    """Seconds until it is done if it generates all it may; 0 once it has ended."""

    eta_unknown: EtaUnknown | None = None
    """Why there is no `eta_s`."""

    pause: str | None = None
    """With PAUSED: what is paused, since when, by whom and why."""

    unserved_model: str | None = None
    """With NO_WORKER: the model that no worker serves."""

    served_models: tuple[str, ...] = ()
    """With NO_WORKER: the models that workers serve; empty if no worker runs."""

    def describe_end(self) -> str:
        """Return when it is done, or why that is unknown, in words."""
        if self.eta_s is not None:
            return f"ETA {format_duration(self.eta_s)} at most"
        if self.unserved_model is not None:
            return unserved(self.unserved_model, self.served_models)
        if self.pause is not None:
            return f"no ETA: {self.pause}"
        reason = None if self.eta_unknown is None else _REASONS.get(self.eta_unknown)
        return f"no ETA: {reason or 'unknown'}"


class JobProgress(_Progress):
    """Progress of a job."""

    id: str
    """Id of the job."""

    model: str | None = None
    """Model that the job asks for; None if its record does not say it."""

    state: JobState
    """State of the job."""

    output_tokens: int
    """Generated tokens that are safely stored; of the first sample."""

    max_tokens: int | None = None
    """Most tokens that a sample may have; many jobs end earlier."""

    queue_position: int | None = None
    """Jobs that are likely to go to a worker before this one, those of higher classes included;
    None if it does not wait, or its delay is not over."""

    tokens_per_s: float | None = None
    """Tokens per second: an equal share of its worker's speed. None if it does not run."""

    def describe(self) -> str:
        """Return the progress in words, without text of prompt or output."""
        most = "?" if self.max_tokens is None else str(self.max_tokens)
        parts = [f"{self.id} {self.state.value}"]
        if self.state is not JobState.QUEUED or self.output_tokens:
            parts.append(f"{self.output_tokens} of at most {most} tokens")
        if self.queue_position is not None:
            parts.append(f"{pluralize(self.queue_position, 'job')} before it")
        if self.tokens_per_s:  # 0.0 if no worker has reported yet
            parts.append(f"{self.tokens_per_s:.1f} tok/s")
        if not self.state.is_terminal:
            parts.append(self.describe_end())
        return ", ".join(parts)


class ProgressSummary(_Progress):
    """Progress of many jobs together."""

    total: int
    """Jobs asked for, each once."""

    done: int
    """Of these, jobs that have ended, in any state."""

    unknown: int = 0
    """Of these, jobs without a record: never submitted, forgotten, or their time to live ran
    out."""

    states: dict[JobState, int] = Field(default_factory=dict)
    """Number of jobs in each state."""

    output_tokens: int = 0
    """Generated tokens that are safely stored."""

    tokens_per_s: float = 0.0
    """Tokens per second of the running jobs."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.done + self.unknown == self.total

    def describe(self) -> str:
        """Return the progress in words."""
        ends = [
            f"{number} {state.value}"
            for state, number in sorted(self.states.items())
            if state is not JobState.QUEUED and number
        ]
        if self.unknown:
            ends.append(f"{self.unknown} unknown")
        parts = [f"{self.done} of {self.total} done", *ends]
        parts.append(pluralize(self.output_tokens, "token"))
        if self.tokens_per_s:
            parts.append(f"{self.tokens_per_s:.1f} tok/s")
        if not self.has_ended:
            parts.append(self.describe_end())
        return ", ".join(parts)


def joined_summary(parts: Sequence[ProgressSummary]) -> ProgressSummary:
    """Return the progress of jobs of several brokers together."""
    states: dict[JobState, int] = {}
    for part in parts:
        for state, number in part.states.items():
            states[state] = states.get(state, 0) + number
    # Without an estimate for one part there is none for all.
    unknown = next((part for part in parts if part.eta_s is None), None)
    end = (
        {"eta_s": max((part.eta_s or 0.0 for part in parts), default=0.0)}
        if unknown is None
        else {name: getattr(unknown, name) for name in _Progress.model_fields}
    )
    return ProgressSummary(
        total=sum(part.total for part in parts),
        done=sum(part.done for part in parts),
        unknown=sum(part.unknown for part in parts),
        states=states,
        output_tokens=sum(part.output_tokens for part in parts),
        tokens_per_s=round(sum(part.tokens_per_s for part in parts), 1),
        **end,
    )


def unserved(model: str, served_models: Sequence[str]) -> str:
    """Return that no worker serves a model, and which models workers serve."""
    if not served_models:
        return f"no worker serves {model}: no worker runs"
    named = ", ".join(served_models[:_MAX_NAMED_MODELS])
    more = len(served_models) - _MAX_NAMED_MODELS
    return f"no worker serves {model}; served: {named}" + (f" and {more} more" if more > 0 else "")


def format_duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, such as `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
