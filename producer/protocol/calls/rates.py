"""The call on the limits per minute of an API key."""

from __future__ import annotations

from dataclasses import dataclass

from .call import Call


@dataclass(frozen=True, slots=True)
class RateReply:
    """What a key has left of its limits; None stands for a number without a limit."""

    is_allowed: bool
    #: Milliseconds until the same call would succeed.
    wait_ms: int
    requests_left: int | None
    #: Milliseconds until all requests are back.
    requests_reset_ms: int
    tokens_left: int | None
    tokens_reset_ms: int


def take(
    key_id: str, requests_per_minute: int | None, tokens_per_minute: int | None, num_tokens: int
) -> Call[RateReply]:
    """Take one request and its tokens from the limits of a key, or neither."""

    def parse(reply: list[int]) -> RateReply:
        allowed, wait_ms, requests, requests_ms, tokens, tokens_ms = reply
        return RateReply(
            allowed == 1,
            wait_ms,
            None if requests < 0 else requests,
            requests_ms,
            None if tokens < 0 else tokens,
            tokens_ms,
        )

    limits = ("" if limit is None else limit for limit in (requests_per_minute, tokens_per_minute))
    return Call("rate_take", (key_id, *limits, num_tokens), parse)
