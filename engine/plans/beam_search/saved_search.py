"""The state of a search as bytes: what another attempt needs to continue it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from .beams import Beam, BeamSearch


def written_search(search: BeamSearch, num_output_tokens: int) -> bytes:
    """Return the state of a search that has not ended.

    It is JSON, compressed: beams have most of their tokens in common, so that it takes little more
    than one of them. Scores keep all of their digits.

    Args:
        search: What is saved: its running and finished sequences.
        num_output_tokens: Tokens that it has taken so far.
    """
    state = {
        "running": [[each.score, *each.token_ids] for each in search.running],
        "finished": [[each.score, *each.token_ids] for each in search.finished],
        "num_output_tokens": num_output_tokens,
    }
    return zlib.compress(json.dumps(state, separators=(",", ":")).encode())


def read_search(state: bytes, search: BeamSearch) -> int:
    """Continue a search from what `written_search` has returned for the same job.

    Returns:
        The tokens that it has taken so far.
    """
    saved = json.loads(zlib.decompress(state))
    search.running = _beams(saved["running"])
    search.finished = _beams(saved["finished"])
    return int(saved["num_output_tokens"])


def _beams(saved: Sequence[Sequence[float]]) -> list[Beam]:
    return [Beam(tuple(map(int, token_ids)), score) for score, *token_ids in saved]
