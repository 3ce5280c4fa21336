"""The identity of pictures and sounds decides which blocks requests share."""

from __future__ import annotations

import random

import numpy as np
import pytest

from batchmill.engine.contract.media import Audio, Image
from batchmill.engine.request.media import MediaItem, PromptMedia, item_digest, salted_item
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.prefix_cache import PrefixCache

BLOCK_SIZE = 4
PLACEHOLDER = 9


def item(content: int, num_features: int, settings: str = "") -> MediaItem:
    medium = Image(1, 1, bytes((content % 256, content // 256, 0)))
    return MediaItem(medium, item_digest(medium.content_digest(), settings), num_features)


def hashes(token_ids: list[int], *items: MediaItem) -> list[bytes]:
    """Return the block hashes of a prompt whose placeholders stand for items."""
    positions = np.flatnonzero(np.array(token_ids) == PLACEHOLDER)
    media = PromptMedia(items, positions) if items else None
    params = SamplingParams(max_tokens=1)
    request = Request("a", token_ids, params, seed=0, max_num_tokens=99, media=media)
    return list(PrefixCache(BlockPool(8, BLOCK_SIZE)).block_hashes(request))


@pytest.mark.parametrize("seed", range(20))
def test_prompts_share_blocks_up_to_the_first_difference_of_their_media(seed: int) -> None:
    chooser = random.Random(seed)
    sizes = [chooser.randrange(1, 9) for _ in range(3)]
    token_ids: list[int] = []
    for size in sizes:
        token_ids += [1] * chooser.randrange(5) + [PLACEHOLDER] * size
    token_ids += [2] * (-len(token_ids) % BLOCK_SIZE)
    items = [item(number, size) for number, size in enumerate(sizes)]
    same = [item(number, size) for number, size in enumerate(sizes)]
    assert hashes(token_ids, *items) == hashes(token_ids, *same)
    changed = chooser.randrange(3)
    other = [*items]
    other[changed] = item(100, sizes[changed])
    first = np.flatnonzero(np.array(token_ids) == PLACEHOLDER)[sum(sizes[:changed])]
    num_shared = int(first) // BLOCK_SIZE
    pairs = list(zip(hashes(token_ids, *items), hashes(token_ids, *other), strict=True))
    assert [one == two for one, two in pairs] == [
        index < num_shared for index in range(len(token_ids) // BLOCK_SIZE)
    ]


def test_a_part_of_a_picture_is_not_another_part_of_it() -> None:
    whole = item(1, 8)
    one, two = hashes([PLACEHOLDER] * 8, whole)
    assert one != two
    assert hashes([PLACEHOLDER] * 4 + [1] * 4, item(1, 4))[0] == one


def test_a_placeholder_without_media_shares_nothing_with_a_picture() -> None:
    token_ids = [1, PLACEHOLDER, PLACEHOLDER, 2]
    assert hashes(token_ids) != hashes(token_ids, item(1, 2))


def test_settings_and_content_are_both_part_of_the_identity() -> None:
    digests = {
        item(1, 1).digest,
        item(2, 1).digest,
        item(1, 1, "other model").digest,
        item_digest(Audio(8000, bytes(4)).content_digest(), ""),
        item_digest(Audio(16000, bytes(4)).content_digest(), ""),
    }
    assert len(digests) == 5
    assert item(1, 1).digest == item(1, 1).digest


def test_features_are_shared_by_requests_of_one_salt() -> None:
    plain = item(1, 4)
    assert salted_item(plain, None) is plain
    digests = [salted_item(plain, salt).digest for salt in ("a", "a", "b")]
    assert digests[0] == digests[1]
    assert len({plain.digest, *digests}) == 3


def test_slices_are_the_features_of_a_part_of_the_prompt() -> None:
    media = PromptMedia([item(1, 2), item(2, 3)], np.array([1, 2, 4, 5, 7]))
    found = [
        (each.item is media.items[1], each.start, each.stop, each.positions.tolist())
        for each in media.slices_in(2, 6)
    ]
    assert found == [(False, 1, 2, [2]), (True, 0, 2, [4, 5])]
    assert list(media.slices_in(8, 20)) == list(media.slices_in(3, 4)) == []
    assert sorted(media.marks_in(2, 6)) == [0, 2, 3]
