"""Beam search: its fields, their limits, and the controls that it cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

#: Field of a job, and the name of its plan.
BEAM_SEARCH: Final = "beam_search"
MAX_BEAM_WIDTH: Final = 16
#: Of `length_penalty`, in either direction.
MAX_LENGTH_PENALTY: Final = 100.0
#: As in transformers: false stops by an estimate, true once there are enough finished outputs, and
#: "never" only when no better one is possible.
EarlyStopping = Literal["never"] | bool

#: Controls that choose a token at random, change the distribution from outside, or end an output by
#: something else than tokens: beams are ranked by the model's own probabilities.
REFUSED_CONTROLS: Final = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "watermark"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("logit_bias", "bad_words", "allowed_token_ids", "guidance_scale", "negative_prompt"),
    *("min_tokens", "stop", "response_format", "structured_outputs", "thinking_token_budget"),
)


def refusal(names: Iterable[str]) -> str:
    """Return the error of controls beside a beam search."""
    return (
        f"{', '.join(names)} cannot be combined with beam_search, which ranks outputs by the "
        "model's own probabilities; leave one of them out"
    )
