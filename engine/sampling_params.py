"""What a request asks of generation, under vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import RequestError

#: A positive temperature under this would divide logits into infinities; 0 is what is meant.
MIN_TEMPERATURE = 1e-3
#: Far beyond it every distribution is uniform in float32.
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Controls of one request. A name that is not listed here is a TypeError, never ignored.

    Raises:
        RequestError: a value is out of range (code `invalid_request`).
    """

    #: 0 takes the likeliest token (greedy); 1 samples the model's own distribution.
    temperature: float = 1.0
    #: Keep the likeliest tokens that together reach this probability; 1 keeps all.
    top_p: float = 1.0
    #: Keep that many of the likeliest tokens; 0 (or vLLM's -1) keeps all.
    top_k: int = 0
    #: Fixes the random draws; None derives a seed from the engine's seed and the request id.
    seed: int | None = None
    #: Most tokens to generate; None generates up to the engine's `max_model_len`.
    max_tokens: int | None = 16
    #: Tokens to generate before an end-of-text token, a stop token or a stop string may end it.
    min_tokens: int = 0
    #: Strings that end generation. The text ends before the first of them.
    stop: str | Sequence[str] | None = ()
    #: Tokens that end generation, besides the model's own end-of-text tokens.
    stop_token_ids: Sequence[int] | None = ()
    #: Keep what ended generation (stop string or stop token) in the text.
    include_stop_str_in_output: bool = False
    #: Go on after an end-of-text token (for benchmarks).
    ignore_eos: bool = False
    #: Leave special tokens, such as `<|im_end|>`, out of the text.
    skip_special_tokens: bool = True
    #: Make text out of the tokens. Without it `text` stays empty and `stop` cannot be used.
    detokenize: bool = True

    def __post_init__(self) -> None:
        # Callers may pass one string or a list; what is kept is immutable and hashable.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        self._check_distribution()
        self._check_lengths()
        self._check_stops()
        for name in (
            "include_stop_str_in_output",
            "ignore_eos",
            "skip_special_tokens",
            "detokenize",
        ):
            if not isinstance(getattr(self, name), bool):
                raise _invalid(name, getattr(self, name), "use true or false")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as it is kept: always a tuple."""
        return tuple(self.stop or ())

    @property
    def num_top_k(self) -> int:
        """`top_k` with vLLM's -1 read as off: 0 keeps all tokens."""
        return max(self.top_k, 0)

    def _check_distribution(self) -> None:
        temperature = self.temperature
        _check_number("temperature", temperature)
        if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise _invalid(
                "temperature",
                temperature,
                f"use 0 (greedy) or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
            )
        _check_number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise _invalid("top_p", self.top_p, "use more than 0 and at most 1 (1 keeps all)")
        _check_integer("top_k", self.top_k, -1, "use 0 to keep all tokens")
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), "use a 64-bit signed integer")
            if self.seed >= 2**63:
                raise _invalid("seed", self.seed, "use a 64-bit signed integer")

    def _check_lengths(self) -> None:
        _check_integer("min_tokens", self.min_tokens, 0, "0 sets no minimum")
        if self.max_tokens is None:
            return
        _check_integer("max_tokens", self.max_tokens, 1, "leave it out for no limit of its own")
        if self.min_tokens > self.max_tokens:
            raise _invalid(
                "min_tokens", self.min_tokens, f"use at most max_tokens ({self.max_tokens})"
            )

    def _check_stops(self) -> None:
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                raise RequestError(
                    "invalid_request", "stop holds an entry that is no text: use non-empty strings"
                )
        for token_id in self.stop_token_ids or ():
            _check_integer("stop_token_ids", token_id, 0, "use token ids of the model's vocabulary")
        if self.stop_strings and not self.detokenize:
            raise RequestError(
                "invalid_request",
                "stop needs text, detokenize is false: set detokenize, or use stop_token_ids",
            )


def _invalid(name: str, value: object, remedy: str) -> RequestError:
    return RequestError("invalid_request", f"{name} is {value!r}: {remedy}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _invalid(name, value, "use a number")


def _check_integer(name: str, value: object, least: int, remedy: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _invalid(name, value, f"use an integer of at least {least}; {remedy}")
