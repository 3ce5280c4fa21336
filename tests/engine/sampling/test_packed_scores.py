"""Scores that a recorded step copies to the host in one array."""

from __future__ import annotations

import numpy as np

from batchmill.engine.sampling.scorer import PackedScores


def test_more_likeliest_tokens_than_the_vocabulary_has_are_those_that_it_has() -> None:
    on_host = np.array([[0.5, -1.0, -0.25, 2.0, -1.0, 0.0, -2.0, 1.0]], dtype=np.float32)
    (score,) = PackedScores(on_host, [20]).read([0])
    assert score.logprobs == {0: -1.0, 2: -0.25, 1: -2.0}
    assert score.entropy == 0.5
