"""How sure the model was of each token of an output."""

from __future__ import annotations

import math
from typing import Any

from batchmill.engine.request.outputs import RequestOutput

#: Likeliest tokens that ranks and margins are computed from.
NUM_TOP = 5


def token_facts(output: RequestOutput) -> list[dict[str, Any]]:
    """Return for each token its probability, entropy in nats, rank and margin.

    The margin is the probability of the token less that of the likeliest other one: below 0 if the
    sampler took a token that was not the likeliest. The rank is 1 for the likeliest, and None below
    the `NUM_TOP` likeliest.
    """
    assert output.logprobs is not None
    assert output.entropies is not None
    return [
        _facts(token_id, scores, entropy)
        for token_id, scores, entropy in zip(
            output.token_ids, output.logprobs, output.entropies, strict=True
        )
    ]


def _facts(token_id: int, scores: dict[int, float], entropy: float) -> dict[str, Any]:
    own = scores[token_id]
    best = sorted(scores.items(), key=lambda item: -item[1])
    rank = next(place for place, (each, _) in enumerate(best, start=1) if each == token_id)
    other_id, other = next((item for item in best if item[0] != token_id), (None, -math.inf))
    return {
        "token_id": token_id,
        "probability": math.exp(own),
        "entropy": entropy,
        "rank": rank if rank <= NUM_TOP else None,
        "margin": math.exp(own) - math.exp(other),
        "runner_up": other_id,
        "runner_up_probability": math.exp(other),
    }
