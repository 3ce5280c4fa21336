"""The suffix index finds the longest match and proposes what followed it most often."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from batchmill.engine.drafts.suffix_index import MAX_MATCH, START, SuffixIndex


def longest_end(sequences: list[list[int]], context: list[int]) -> tuple[int, int]:
    """Return the length of the longest end that occurs, and how often it occurs."""
    text = [token for each in sequences for token in (START, *each, -1)]
    for size in range(min(MAX_MATCH, len(context)), 0, -1):
        end = context[-size:]
        count = sum(text[at : at + size] == end for at in range(len(text)))
        if count:
            return size, count
    return 0, 0


@pytest.mark.parametrize("seed", range(5))
def test_longest_match_and_its_count_are_those_of_a_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40):
        sequences = [
            [rng.randrange(4) for _ in range(rng.randint(0, 40))] for _ in range(rng.randint(1, 8))
        ]
        context = [rng.randrange(5) for _ in range(rng.randint(1, 20))]
        if rng.random() < 0.5:
            context.insert(0, START)
        match = SuffixIndex(sequences).find(context, MAX_MATCH)
        found = (0, 0) if match is None else (match.depth, match.end - match.first)
        assert found == longest_end(sequences, context)


def test_proposal_follows_the_most_frequent_tokens_as_far_as_they_are_probable() -> None:
    index = SuffixIndex([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5], [1, 9, 3, 5]])
    match = index.find([START, 1], MAX_MATCH)
    assert match is not None
    assert index.propose(match, 8, 0.2) == (2, 3, 5)
    # Of four that begin with 1, three go on with 2, and two of these end in 5.
    assert index.propose(match, 8, 0.5) == (2, 3)
    assert index.propose(match, 1, 0.2) == (2,)
    assert index.propose(match, 8, 0.9) == ()


def test_one_short_match_is_less_probable_than_a_long_one() -> None:
    index = SuffixIndex([[1, 2, 3, 4, 5, 6]])
    short, long = index.find([9, 3], MAX_MATCH), index.find([1, 2, 3], MAX_MATCH)
    assert short is not None
    assert long is not None
    assert index.propose(short, 1, 0.7) == ()
    assert index.propose(long, 1, 0.7) == (4,)


def test_no_proposal_goes_on_from_one_sequence_into_the_next() -> None:
    rng = random.Random(1)
    sequences = [[rng.randrange(3) for _ in range(12)] for _ in range(6)]
    whole = Counter(tuple(each[at:]) for each in sequences for at in range(len(each)))
    index = SuffixIndex(sequences)
    for each in sequences:
        for length in range(1, len(each)):
            context = [START, *each[:length]]
            match = index.find(context, MAX_MATCH)
            assert match is not None
            proposed = index.propose(match, 32, 0.0)
            begins = [end[: len(proposed)] for end in whole]
            assert proposed in begins
