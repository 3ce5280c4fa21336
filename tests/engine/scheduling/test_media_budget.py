"""The limit on how much of pictures and sounds a step turns into features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchmill.engine.contract.media import Image
from batchmill.engine.request.media import MediaItem, PromptMedia
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.scores import TokenScores
from batchmill.engine.scheduling.batch_builder import BatchBuilder
from batchmill.engine.scheduling.media_budget import MediaBudget


def request(*items: tuple[int, int], num_computed: int = 0) -> Request:
    """Return a request of items (content, features), each after one token of text."""
    token_ids: list[int] = []
    media = []
    for content, num_features in items:
        token_ids += [1] + [9] * num_features
        medium = Image(1, 1, bytes((content, 0, 0)))
        media.append(MediaItem(medium, medium.content_digest(), num_features))
    positions = np.flatnonzero(np.array(token_ids) == 9)
    found = Request(
        "a",
        [*token_ids, 1],
        SamplingParams(max_tokens=1),
        seed=0,
        max_num_tokens=len(token_ids) + 2,
        media=PromptMedia(media, positions),
    )
    found.num_computed_tokens = num_computed
    return found


def limits(num_rows: int, requests: Sequence[Request], num_new_tokens: int) -> list[int]:
    budget = MediaBudget(num_rows)
    return [budget.limit(each, num_new_tokens) for each in requests]


def test_a_chunk_ends_before_an_item_that_exceeds_the_budget() -> None:
    assert limits(10, [request((1, 6)), request((2, 6)), request((3, 4))], 4) == [4, 1, 4]


def test_the_first_item_of_a_step_always_fits() -> None:
    assert limits(3, [request((1, 60)), request((2, 1))], 5) == [5, 1]
    assert limits(3, [request((1, 2), (2, 2))], 6) == [4]


def test_items_that_are_computed_already_cost_nothing() -> None:
    begun = request((1, 6), num_computed=3)
    assert begun.media is not None
    begun.media.held = begun.media.items[0], None
    assert limits(6, [begun, request((2, 6))], 4) == [4, 4]
    assert limits(6, [request((2, 6)), request((2, 6))], 4) == [4, 4]


def test_an_item_in_which_a_cached_prefix_ends_counts() -> None:
    assert limits(6, [request((1, 6), num_computed=3), request((2, 6))], 4) == [4, 1]


def test_scored_positions_end_with_a_chunk_that_the_budget_cuts() -> None:
    builder = BatchBuilder(100, MediaBudget(6))
    builder.add_chunk(request((1, 6)), 8)
    scored = request((2, 6))
    scored.scores = TokenScores.of(
        num_prompt_tokens=8,
        num_resumed_tokens=0,
        prompt_logprobs=1,
        logprobs=None,
        entropy=False,
    )
    item = builder.add_chunk(scored, 8)
    assert item is not None
    assert (item.num_new_tokens, item.scored) == (1, range(1, 2))
