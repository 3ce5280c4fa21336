"""Tokens of a run per model, and what they cost by the operator's prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.producer.job.batch import BatchUsage

from .settings import Price

_PER_TOKENS = 1_000_000


@dataclass(slots=True)
class Tokens:
    """Tokens of one model.

    Attributes:
        prompt: all tokens of prompts.
        cached: those among them that came from the prefix cache.
        output: generated tokens.
    """

    prompt: int = 0
    cached: int = 0
    output: int = 0

    @classmethod
    def of_batch(cls, usage: BatchUsage) -> Tokens:
        """Return the tokens of a batch's ended jobs."""
        cached = usage.input_tokens_details.cached_tokens
        return cls(usage.input_tokens, cached, usage.output_tokens)

    def add(self, usage: Mapping[str, Any]) -> None:
        """Add the usage of a result, as its line has it."""
        self.prompt += int(usage.get("prompt_tokens", 0))
        self.output += int(usage.get("completion_tokens", 0))
        details = usage.get("prompt_tokens_details") or {}
        self.cached += int(details.get("cached_tokens", 0))


@dataclass(frozen=True, slots=True)
class Cost:
    """What tokens cost.

    Attributes:
        amounts: per currency.
        unpriced: models without a price.
    """

    amounts: dict[str, float]
    unpriced: tuple[str, ...]

    def __str__(self) -> str:
        """Return the amounts in words; without a currency, only the number."""
        texts = [f"{amount:.6g} {currency}".rstrip() for currency, amount in self.amounts.items()]
        missing = f" (no price for {', '.join(self.unpriced)})" if self.unpriced else ""
        return (" + ".join(texts) or "unknown") + missing


def cost_of(usage: Mapping[str, Tokens], prices: Mapping[str, Price]) -> Cost | None:
    """Return what tokens per model cost; None if the operator has set no prices."""
    if not prices:
        return None
    amounts: dict[str, float] = {}
    unpriced = []
    for model, tokens in usage.items():
        price = prices.get(model, prices.get("*"))
        if price is None:
            unpriced.append(model)
        else:
            amounts[price.currency] = amounts.get(price.currency, 0.0) + amount_of(price, tokens)
    return Cost(amounts, tuple(unpriced))


def amount_of(price: Price, tokens: Tokens) -> float:
    """Return what tokens cost by a price, in its currency."""
    cached = price.input if price.cached is None else price.cached
    amount = (tokens.prompt - tokens.cached) * price.input + tokens.cached * cached
    return (amount + tokens.output * price.output) / _PER_TOKENS
