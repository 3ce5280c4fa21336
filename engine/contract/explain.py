"""What a job can have explained, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol, get_args

from .errors import ContractError

Part = Literal["confidence", "alternatives", "attribution", "uncertainty"]
PARTS: Final[tuple[str, ...]] = get_args(Part)
#: Field of a job, and section of its result.
EXPLAIN: Final = "explain"
#: Prompts that the attribution of one output reads at most: the whole one, each of 32 parts left
#: out, 40 random ones, and 3 without the best parts.
MAX_ATTRIBUTION_PROMPTS: Final = 76
#: Further samples of `uncertainty`, and forks of `alternatives` with the tokens of each.
NUM_SAMPLES: Final = 8
NUM_FORKS: Final = 3
NUM_FORK_TOKENS: Final = 32
#: Tokens around a text whose meaning is compared (`engine/plans/explain/meaning.py`), at most.
NUM_FRAME_TOKENS: Final = 32


class Explained(Protocol):
    """The fields of a job that an explanation depends on."""

    @property
    def explain(self) -> list[Part]:
        """The parts asked for."""

    @property
    def explain_similarity(self) -> float | None:
        """Cosine from which texts mean the same."""

    @property
    def n(self) -> int:
        """Samples."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of the output."""

    @property
    def echo(self) -> bool:
        """Whether the text begins with the prompt's."""

    @property
    def truncate_prompt_tokens(self) -> int | None:
        """Last tokens of the prompt that are kept."""


def check_explained(job: Explained) -> None:
    """Check that a job can be explained.

    Raises:
        ContractError: it cannot.
    """
    if job.explain_similarity is not None and "uncertainty" not in job.explain:
        raise ContractError(
            "explain_similarity is for the samples of uncertainty: add it to explain, or leave it "
            "out"
        )
    if not job.explain:
        return
    if len(set(job.explain)) < len(job.explain):
        raise ContractError("explain names a part twice: name each once")
    for name, value, is_wrong in (
        ("n", job.n, job.n > 1),
        ("echo", "true", job.echo),
        ("max_tokens", job.max_tokens, not job.max_tokens),
    ):
        if is_wrong:
            raise ContractError(
                f"{name} is {value}, and explain is for one output without an echo: leave {name} "
                "out"
            )
    if "attribution" in job.explain and job.truncate_prompt_tokens is not None:
        raise ContractError(
            "attribution is of the whole prompt: leave truncate_prompt_tokens out, or attribution"
        )


def most_tokens(
    parts: Sequence[Any],
    num_prompt_tokens: int,
    num_output_tokens: int,
    *,
    compares_meaning: bool = False,
) -> int:
    """Return the tokens that explanations take at most, besides the job's own.

    Cached beginnings of prompts count: how much of them is shared is known only afterwards.
    """
    both = num_prompt_tokens + num_output_tokens
    costs = {
        "attribution": MAX_ATTRIBUTION_PROMPTS * both,
        "alternatives": NUM_FORKS * (both + NUM_FORK_TOKENS),
        "uncertainty": NUM_SAMPLES * both,
    }
    if compares_meaning:
        costs["uncertainty"] += (NUM_SAMPLES + 1) * (num_output_tokens + NUM_FRAME_TOKENS)
    return sum(costs.get(part, 0) for part in parts)
