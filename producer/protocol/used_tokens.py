"""The tokens that jobs have used: what an end reports, and the sums that are kept of it."""

from __future__ import annotations

from typing import Any, NamedTuple


class UsedTokens(NamedTuple):
    """Tokens of one job, as its end reports them."""

    prompt: int = 0
    #: Of all samples.
    completion: int = 0
    #: Those of the prompt that came from the prefix cache.
    cached: int = 0
    #: Those of the completion that are thoughts.
    reasoning: int = 0


class Amounts(NamedTuple):
    """Sums over jobs, in the order in which they are stored."""

    jobs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Those of the prompts that came from the prefix cache.
    cached_tokens: int = 0
    #: Those of the completions that are thoughts.
    reasoning_tokens: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """Return both together."""
        return Amounts(*(one + more for one, more in zip(self, other, strict=True)))


def read_amounts(text: Any) -> Amounts:
    """Return stored sums; zeros for what batchmill did not write."""
    words = text.split() if isinstance(text, bytes) else []
    # Older versions did not count thoughts.
    is_known = len(words) in (len(Amounts._fields) - 1, len(Amounts._fields))
    if not is_known or not all(word.isdigit() for word in words):
        return Amounts()
    return Amounts(*map(int, words))
