"""The state of a search as bytes: what another attempt needs to continue it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from .beams import Beam, BeamSearch


def written_search(search: BeamSearch, num_output_tokens: int) -> bytes:
    """Return the state of a search that has not ended.

    It is JSON, compressed. Beams have most of their tokens in common: of each, only those are
    written that follow the beginning it shares with the one before, so that all take little more
    than one. Scores keep all of their digits.

    Args:
        search: What is saved: its running and finished sequences.
        num_output_tokens: Tokens that it has taken so far.
    """
    state = {
        "beams": _written([*search.running, *search.finished]),
        "num_running": len(search.running),
        "num_output_tokens": num_output_tokens,
    }
    return zlib.compress(json.dumps(state, separators=(",", ":")).encode())


def read_search(state: bytes, search: BeamSearch) -> int:
    """Continue a search from what `written_search` has returned for the same job.

    Returns:
        The tokens that it has taken so far.
    """
    saved = json.loads(zlib.decompress(state))
    beams, num_running = _beams(saved["beams"]), int(saved["num_running"])
    search.running, search.finished = beams[:num_running], beams[num_running:]
    return int(saved["num_output_tokens"])


def _written(beams: Sequence[Beam]) -> list[list[float]]:
    """Return the score of each, how many tokens it shares with the one before, and the rest."""
    rows: list[list[float]] = []
    before: Sequence[int] = ()
    for beam in beams:
        num_shared = _num_shared(before, beam.token_ids)
        rows.append([beam.score, num_shared, *beam.token_ids[num_shared:]])
        before = beam.token_ids
    return rows


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _beams(saved: Sequence[Sequence[float]]) -> list[Beam]:
    beams: list[Beam] = []
    before: tuple[int, ...] = ()
    for score, num_shared, *rest in saved:
        before = (*before[: int(num_shared)], *map(int, rest))
        beams.append(Beam(before, score))
    return beams
