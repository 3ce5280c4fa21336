"""Log probabilities and entropies of a request's own distributions. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenScore:
    """The score of one token in the model's distribution, before any control."""

    #: Token id to log probability: the token itself first, then the likeliest, best first, then
    #: those that were asked for by their ids.
    logprobs: dict[int, float]
    #: Entropy of the whole distribution, in nats.
    entropy: float


@dataclass(slots=True)
class TokenScores:
    """The scores of one request's tokens that are known so far.

    Positions count the prompt's and the output's tokens. New tokens are scored when they are
    sampled. Tokens that came with the request (its prompt and its resumed output) are scored when
    the model computes the token before them, from `next_position` to below `end_position`.

    Attributes:
        num_prompt_tokens: Position of the first output token.
        num_prompt_logprobs: Likeliest tokens reported per prompt token; None reports nothing.
        num_logprobs: The same per output token.
        asked_token_ids: Tokens that are scored at each place of the output as well.
        wants_entropy: Whether entropies of the output's tokens are reported.
        next_position: Position of the next known token to score.
        end_position: Position of the first known token that is not scored.
        prompt_logprobs: One per prompt token; None for the first, which nothing precedes.
        logprobs: One per output token.
        entropies: One per output token.
    """

    num_prompt_tokens: int
    num_prompt_logprobs: int | None
    num_logprobs: int | None
    asked_token_ids: tuple[int, ...]
    wants_entropy: bool
    next_position: int
    end_position: int
    prompt_logprobs: list[dict[int, float] | None] = field(default_factory=lambda: [None])
    logprobs: list[dict[int, float]] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        *,
        num_prompt_tokens: int,
        num_resumed_tokens: int,
        prompt_logprobs: int | None,
        logprobs: int | None,
        entropy: bool,
        asked_token_ids: Sequence[int] = (),
    ) -> TokenScores | None:
        """Return empty scores for a request; None if it asks for no scores."""
        wants_output = logprobs is not None or entropy
        if prompt_logprobs is None and not wants_output:
            return None
        return cls(
            num_prompt_tokens=num_prompt_tokens,
            num_prompt_logprobs=prompt_logprobs,
            num_logprobs=logprobs,
            asked_token_ids=tuple(asked_token_ids),
            wants_entropy=entropy,
            next_position=num_prompt_tokens if prompt_logprobs is None else 1,
            end_position=num_prompt_tokens + (num_resumed_tokens if wants_output else 0),
        )

    @property
    def is_pending(self) -> bool:
        """Whether known tokens still have to be scored."""
        return self.next_position < self.end_position

    @property
    def wants_output(self) -> bool:
        """Whether new tokens are scored when they are sampled."""
        return self.num_logprobs is not None or self.wants_entropy

    def num_top(self, position: int) -> int:
        """Return how many likeliest tokens are reported at a position."""
        is_output = position >= self.num_prompt_tokens
        return (self.num_logprobs if is_output else self.num_prompt_logprobs) or 0

    def asked_at(self, position: int) -> tuple[int, ...]:
        """Return the tokens that are scored at a position besides its own and the likeliest."""
        return self.asked_token_ids if position >= self.num_prompt_tokens else ()

    def put(self, position: int, score: TokenScore) -> None:
        """Store one token's score, in order of positions, or again after a failed step."""
        index = position - self.num_prompt_tokens
        if index < 0:
            self.prompt_logprobs[position:] = [score.logprobs]
        if index >= 0 and self.num_logprobs is not None:
            self.logprobs[index:] = [score.logprobs]
        if index >= 0 and self.wants_entropy:
            self.entropies[index:] = [score.entropy]
        if position < self.end_position:
            self.next_position = position + 1
