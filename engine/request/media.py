"""The media of a prompt: which positions their features fill, and the identity of each position."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.contract.media import Media

#: Bytes of the identity of a position.
_MARK_BYTES = 16


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One picture or sound, as the model takes it. Requests may share it."""

    #: What was given; a sound has the model's sample rate.
    medium: Media
    #: Stands for its content and for all that turns it into features: the model, and the settings
    #: of its processor.
    digest: bytes
    #: Rows of features, one for each of its placeholder tokens.
    num_features: int
    #: Sizes that the model needs besides, such as the rows and columns of a picture's parts.
    grid: tuple[int, ...] = ()


class FeatureSlice(NamedTuple):
    """The features of one item that a part of the prompt takes."""

    item: MediaItem
    #: Rows of the item's features, from `start` to `stop` (exclusive).
    start: int
    stop: int
    #: Positions in the prompt that they fill, [stop - start] int64, ascending.
    positions: NDArray[np.int64]


class PromptMedia:
    """The media of one prompt.

    Attributes:
        items: In the order of their placeholders.
        positions: [num_features] int64, ascending positions in the prompt that features fill.
        rope_positions: [3, num_prompt_tokens] int64, the time, row and column that each token of
            the prompt is rotated by; None if the model rotates by plain positions.
        position_offset: What is added to the position of a token after the prompt, before it is
            rotated: a picture takes fewer positions than tokens.
        held: An item that is computed in part, and its features, so that they stay in memory until
            the rest is computed; None if there is none.
        problem: Why the features of an item could not be computed; None as long as they can.
    """

    __slots__ = (
        "_starts",
        "held",
        "items",
        "position_offset",
        "positions",
        "problem",
        "rope_positions",
    )

    def __init__(
        self,
        items: Sequence[MediaItem],
        positions: NDArray[np.int64],
        rope_positions: NDArray[np.int64] | None = None,
    ) -> None:
        self.items = tuple(items)
        self.positions = positions
        self.rope_positions = rope_positions
        self.position_offset = 0
        if rope_positions is not None:
            self.position_offset = int(rope_positions.max()) + 1 - rope_positions.shape[1]
        self.held: tuple[MediaItem, Any] | None = None
        self.problem: str | None = None
        counts = [0, *(item.num_features for item in self.items)]
        self._starts: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        assert self._starts[-1] == len(positions), "each feature fills one position"

    def slices_in(self, start: int, stop: int) -> Iterator[FeatureSlice]:
        """Yield the features that fill positions `start` to `stop` (exclusive), item by item."""
        first, last = np.searchsorted(self.positions, (start, stop)).tolist()
        index = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            begin, end = int(self._starts[index]), int(self._starts[index + 1])
            until = min(last, end)
            if until > first:
                positions = self.positions[first:until]
                yield FeatureSlice(self.items[index], first - begin, until - begin, positions)
            first, index = until, index + 1

    def marks_in(self, start: int, stop: int) -> Mapping[int, bytes]:
        """Return the identities of the positions that features fill, by position less `start`."""
        return {
            position - start: _mark(each.item.digest, row)
            for each in self.slices_in(start, stop)
            for row, position in enumerate(each.positions.tolist(), start=each.start)
        }


def positions_of(token_id: int | None, token_ids: Sequence[int]) -> NDArray[np.int64]:
    """Return the ascending positions of a token in a prompt, int64."""
    return np.flatnonzero(np.array(token_ids) == token_id).astype(np.int64)


def salted_item(item: MediaItem, cache_salt: str | None) -> MediaItem:
    """Return an item whose features only requests of the same salt share.

    How long a request takes tells whether the features of its picture were in memory.
    """
    if cache_salt is None:
        return item
    salt = cache_salt.encode(errors="surrogatepass")
    digest = hashlib.blake2b(item.digest + salt, digest_size=32, person=b"salted item")
    return replace(item, digest=digest.digest())


def item_digest(content_digest: bytes, settings: str) -> bytes:
    """Return the identity of an item's features.

    Args:
        content_digest: Of the decoded medium.
        settings: All that turns it into features: the model, and the settings of its processor.
    """
    digest = hashlib.blake2b(digest_size=32, person=b"media item")
    for part in (content_digest, settings.encode()):
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()


def _mark(digest: bytes, row: int) -> bytes:
    """Return the identity of one row of an item's features, which stands for a token id."""
    content = digest + struct.pack("<Q", row)
    return hashlib.blake2b(content, digest_size=_MARK_BYTES, person=b"media row").digest()
