"""The requests of `batchmill bench`: the same for everybody who runs them, from a fixed seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

#: Special tokens have the lowest ids in most vocabularies: prompts hold none of those.
FIRST_TOKEN_ID = 100
_SHARED_TOKENS = 512
_TAIL_MIN, _TAIL_MAX = 16, 512


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request: token ids, and how many tokens to generate whatever they are."""

    prompt: list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are all submitted at once."""

    name: str
    requests: tuple[BenchRequest, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(len(request.prompt) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Tokens that all requests generate."""
        return sum(request.max_tokens for request in self.requests)


class _Draw:
    """Random sizes and tokens."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self.rng = random.Random(seed)
        self._last = vocab_size - 1
        self._first = min(FIRST_TOKEN_ID, vocab_size // 2)

    def tokens(self, size: int) -> list[int]:
        return [self.rng.randint(self._first, self._last) for _ in range(size)]

    def size(self, least: int, most: int) -> int:
        return self.rng.randint(least, most)

    def tail(self) -> int:
        """Draw from a bounded Pareto distribution (alpha 1): half are below 31, a few reach 512."""
        span = _TAIL_MAX - self.rng.random() * (_TAIL_MAX - _TAIL_MIN)
        return int(_TAIL_MIN * _TAIL_MAX / span)


def _bulk(draw: _Draw) -> list[BenchRequest]:
    return [BenchRequest(draw.tokens(draw.size(32, 256)), draw.size(32, 192)) for _ in range(64)]


def _shared_prefix(draw: _Draw) -> list[BenchRequest]:
    prefix = draw.tokens(_SHARED_TOKENS)
    return [BenchRequest(prefix + draw.tokens(draw.size(16, 64)), 64) for _ in range(64)]


def _long_tail(draw: _Draw) -> list[BenchRequest]:
    requests = [BenchRequest(draw.tokens(draw.size(32, 128)), draw.tail()) for _ in range(48)]
    requests[5] = replace(requests[5], max_tokens=_TAIL_MAX)  # one reaches the end of the tail
    return requests


def _single(draw: _Draw) -> list[BenchRequest]:
    return [BenchRequest(draw.tokens(128), 128)]


_MAKERS: dict[str, Callable[[_Draw], list[BenchRequest]]] = {
    "bulk": _bulk,
    "shared-prefix": _shared_prefix,
    "long-tail": _long_tail,
    "single": _single,
}
#: bulk: prompts of 32-256 tokens, outputs of 32-192. shared-prefix: 512 tokens that all have in
#: common and 16-64 of their own, outputs of 64. long-tail: outputs of 16-512, most of them short.
#: single: one request, 128 in and out.
WORKLOAD_NAMES = tuple(_MAKERS)


def make_workload(name: str, *, vocab_size: int, seed: int = 0, copies: int = 1) -> Workload:
    """Return a workload by its name.

    Args:
        name: one of `WORKLOAD_NAMES`.
        vocab_size: token ids are below it.
        seed: another seed, other tokens and sizes.
        copies: so many times the number of requests, each with tokens of its own.

    Raises:
        ValueError: there is no such workload.
    """
    if name not in _MAKERS:
        raise ValueError(f"workload is {name!r}; there are {', '.join(WORKLOAD_NAMES)}")
    requests = [
        request
        for copy in range(copies)
        for request in _MAKERS[name](_Draw(seed + 1000 * copy, vocab_size))
    ]
    return Workload(name, tuple(requests))


def salted(workload: Workload, salt: int) -> Workload:
    """Return the workload with another first token, which no prefix cache knows."""
    requests = tuple(
        replace(request, prompt=[salt, *request.prompt[1:]]) for request in workload.requests
    )
    return replace(workload, requests=requests)
