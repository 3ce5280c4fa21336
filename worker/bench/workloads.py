"""The requests of `batchmill bench`, from a fixed seed, so that every run has the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

#: Special tokens have the lowest ids in most vocabularies, so prompts hold only higher ones.
FIRST_TOKEN_ID = 100
_SHARED_TOKENS = 512
_TAIL_MIN, _TAIL_MAX = 16, 512


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request: token ids, and the exact number of tokens to generate."""

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


class _Sampler:
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
        """Sample a bounded Pareto distribution (alpha 1): half are below 31, a few reach 512."""
        span = _TAIL_MAX - self.rng.random() * (_TAIL_MAX - _TAIL_MIN)
        return int(_TAIL_MIN * _TAIL_MAX / span)


def _bulk(sampler: _Sampler) -> list[BenchRequest]:
    return [
        BenchRequest(sampler.tokens(sampler.size(32, 256)), sampler.size(32, 192))
        for _ in range(64)
    ]


def _shared_prefix(sampler: _Sampler) -> list[BenchRequest]:
    prefix = sampler.tokens(_SHARED_TOKENS)
    return [BenchRequest(prefix + sampler.tokens(sampler.size(16, 64)), 64) for _ in range(64)]


def _long_tail(sampler: _Sampler) -> list[BenchRequest]:
    requests = [
        BenchRequest(sampler.tokens(sampler.size(32, 128)), sampler.tail()) for _ in range(48)
    ]
    requests[5] = replace(requests[5], max_tokens=_TAIL_MAX)  # one reaches the end of the tail
    return requests


def _single(sampler: _Sampler) -> list[BenchRequest]:
    return [BenchRequest(sampler.tokens(128), 128)]


_MAKERS: dict[str, Callable[[_Sampler], list[BenchRequest]]] = {
    "bulk": _bulk,
    "shared-prefix": _shared_prefix,
    "long-tail": _long_tail,
    "single": _single,
}
#: bulk: prompts of 32-256 tokens, outputs of 32-192. shared-prefix: 512 shared tokens and 16-64
#: separate ones, outputs of 64. long-tail: outputs of 16-512, most of them short.
#: single: one request, 128 in and out.
WORKLOAD_NAMES = tuple(_MAKERS)


def make_workload(name: str, *, vocab_size: int, seed: int = 0, copies: int = 1) -> Workload:
    """Return the workload of this name.

    Args:
        name: one of `WORKLOAD_NAMES`.
        vocab_size: token ids are below it.
        seed: changes the tokens and sizes.
        copies: multiplies the number of requests; each copy has different tokens.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _MAKERS:
        raise ValueError(f"workload {name!r} must be one of {', '.join(WORKLOAD_NAMES)}")
    requests = [
        request
        for copy in range(copies)
        for request in _MAKERS[name](_Sampler(seed + 1000 * copy, vocab_size))
    ]
    return Workload(name, tuple(requests))


def with_first_token(workload: Workload, token: int) -> Workload:
    """Return the workload with another first token per prompt, so that no prefix is cached."""
    requests = tuple(
        replace(request, prompt=[token, *request.prompt[1:]]) for request in workload.requests
    )
    return replace(workload, requests=requests)
