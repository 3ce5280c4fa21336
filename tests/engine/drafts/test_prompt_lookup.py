"""Draft tokens are those after the latest earlier place that ends in the same tokens."""

from __future__ import annotations

import random

import pytest

from batchmill.engine.drafts.prompt_lookup import PromptLookup


def lookup(prompt: list[int], *, min_ngram: int = 2, max_ngram: int = 4) -> PromptLookup:
    return PromptLookup(prompt, min_ngram=min_ngram, max_ngram=max_ngram)


def propose_by_hand(known: list[int], least: int, most: int, max_tokens: int) -> list[int]:
    """Propose the same tokens by a search backwards from the end."""
    for size in range(most, least - 1, -1):
        for end in range(len(known) - 1, size - 1, -1):
            if len(known) >= size and known[end - size : end] == known[-size:]:
                alike = size
                while alike < end and known[end - 1 - alike] == known[-1 - alike]:
                    alike += 1
                text = list(known)
                for index in range(min(alike, max_tokens)):
                    text.append(text[end + index])
                return text[len(known) :]
    return []


def test_proposes_the_tokens_that_came_after_the_same_ones() -> None:
    assert lookup([1, 2, 3, 4, 5, 9, 1, 2, 3]).propose([], 8) == (4, 5, 9)


def test_proposes_nothing_if_the_end_is_new() -> None:
    assert lookup([1, 2, 3, 4]).propose([5], 8) == ()
    assert lookup([1, 2, 3, 7, 3]).propose([], 8) == (), "one token is fewer than two"
    assert lookup([1]).propose([], 8) == ()


def test_takes_the_latest_of_equal_places_and_a_longer_one_before_it() -> None:
    assert lookup([1, 2, 8, 1, 2, 9, 1, 2]).propose([], 1) == (9,)
    assert lookup([5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2]).propose([], 1) == (8,)


def test_proposes_as_many_tokens_as_match_before_the_two_places() -> None:
    text = list(range(20))
    for num_copied in (2, 3, 7, 11):
        drafts = lookup(text + text[:num_copied]).propose([], 10)
        assert drafts == tuple((text + text)[num_copied:][: min(num_copied, 10)])


def test_repetition_continues_past_the_known_tokens() -> None:
    assert lookup([7, 7, 7]).propose([7, 7], 3) == (7, 7, 7)
    assert lookup([0, 1, 2, 3, 1, 2, 3, 1]).propose([2, 3], 5) == (1, 2, 3, 1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_proposals_equal_a_plain_search_however_the_output_grows(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        least = rng.randint(1, 3)
        most = rng.randint(least, 5)
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 12))]
        grown = lookup(prompt, min_ngram=least, max_ngram=most)
        output: list[int] = []
        for _ in range(8):
            output += [rng.randrange(3) for _ in range(rng.randint(0, 3))]
            max_tokens = rng.randint(1, 6)
            expected = tuple(propose_by_hand(prompt + output, least, most, max_tokens))
            assert grown.propose(output, max_tokens) == expected
            assert grown.propose(output, max_tokens) == expected, "asked again"
