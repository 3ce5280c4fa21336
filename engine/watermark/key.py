"""A watermark's key: from a secret and the tokens before a place to the noise of that place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Final

#: Tokens before a place that fix its noise. More of them are repeated less often, so more places
#: are marked; fewer survive more edits of the text.
CONTEXT_WIDTH: Final = 4
#: The position that is hashed for a marked place: its noise depends on its context alone.
MARKED_POSITION: Final = 0
#: Part of every hash; another scheme gets another one.
_PERSON: Final = b"bm-watermark-1"
_MASK: Final = 0xFFFFFFFF


class WatermarkKey:
    """A named secret. Its hash of a context cannot be predicted, or checked, without it."""

    __slots__ = ("_hash", "name")

    def __init__(self, name: str, secret: str) -> None:
        """Derive the key.

        Args:
            name: Name by which jobs ask for it.
            secret: Its secret; `problem_of_secret` says what it must be.
        """
        self.name = name
        digest = hashlib.blake2b(secret.encode(), digest_size=32, person=_PERSON).digest()
        self._hash = hashlib.blake2b(digest_size=8, key=digest, person=_PERSON)

    def __repr__(self) -> str:
        """Return the name alone."""
        return f"WatermarkKey({self.name!r})"

    def seed_of(self, context: Sequence[int]) -> int:
        """Return the seed of the noise after a context, a 64-bit signed integer."""
        state = self._hash.copy()
        state.update(b"".join(token_id.to_bytes(4, "little") for token_id in context))
        return int.from_bytes(state.digest(), "little", signed=True)


def read_keys(secrets: Mapping[str, str]) -> dict[str, WatermarkKey]:
    """Return the keys of secrets by name."""
    return {name: WatermarkKey(name, secret) for name, secret in secrets.items()}


def surprise(seed: int, position: int, token_id: int) -> float:
    """Return -log(u) of the uniform number u that the sampler's noise for a token is made of.

    The smaller u is, the larger is the noise, and the likelier is the token to be taken. Without
    knowledge of the seed it is distributed like an exponential variable of mean 1.

    Args:
        seed: 64-bit signed, as the op `sample` takes it.
        position: As the op takes it.
        token_id: The token.
    """
    state = 0
    for block in (seed, seed >> 32, position, token_id):
        scrambled = _rotate(((block & _MASK) * 0xCC9E2D51) & _MASK, 15) * 0x1B873593 & _MASK
        state = (_rotate(state ^ scrambled, 13) * 5 + 0xE6546B64) & _MASK
    state ^= 16
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _MASK
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _MASK
    state ^= state >> 16
    return -math.log(((state & 0x7FFFFFFF) + 0.5) * 2**-31)


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK
