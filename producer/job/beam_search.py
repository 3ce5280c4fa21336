"""Beam search of a job."""

from __future__ import annotations

from typing import Final, Protocol

from pydantic import BaseModel, Field

from batchmill.engine.contract.beam_search import (
    MAX_BEAM_WIDTH,
    MAX_LENGTH_PENALTY,
    REFUSED_CONTROLS,
    EarlyStopping,
    refusal,
)

from .field_checks import STRICT, optional

#: Fields of a job that its outputs would not suit.
_REFUSED_FIELDS: Final = ("tools", "reasoning_effort", "select", "explain")


class SearchedJob(Protocol):
    """What a search asks of a job, besides the controls that it is refused with."""

    @property
    def section(self) -> object:
        """Input of another kind than text; None for a job that generates."""

    @property
    def n(self) -> int:
        """Outputs."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of an output."""


class BeamSearch(BaseModel):
    """Search for the likeliest outputs, instead of sampling; the `n` best are returned."""

    model_config = STRICT

    beam_width: int = Field(ge=2, le=MAX_BEAM_WIDTH)
    """Outputs that are followed side by side."""

    length_penalty: float = optional(1.0, ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)
    """Exponent of the length by which the log probability of an output is divided: above 0, longer
    outputs are preferred."""

    early_stopping: EarlyStopping = optional(False)
    """When the search ends: true, as soon as `beam_width` outputs are finished; false, when better
    ones are unlikely; `never`, when none is possible. As in transformers."""

    def check_suits(self, job: SearchedJob) -> None:
        """Check that a job can be searched for.

        Raises:
            ValueError: it has something that a search cannot follow; the message names it.
        """
        if job.section is not None:
            raise ValueError("beam_search is for jobs that generate; leave it out")
        if job.n > self.beam_width:
            raise ValueError(
                f"n is {job.n}, more than beam_width ({self.beam_width}); lower it, or raise "
                "beam_width"
            )
        if job.max_tokens == 0:
            raise ValueError("beam_search needs max_tokens of at least 1")
        given = [name for name in REFUSED_CONTROLS if _is_given(job, name)]
        given += [name for name in _REFUSED_FIELDS if getattr(job, name)]
        if given:
            raise ValueError(refusal(given))


def _is_given(job: SearchedJob, name: str) -> bool:
    value = getattr(job, name)
    if name == "temperature" and value == 0:
        return False  # greedy, as a search is
    assert isinstance(job, BaseModel)
    default = type(job).model_fields[name].get_default(call_default_factory=True)
    return bool(value != default)
