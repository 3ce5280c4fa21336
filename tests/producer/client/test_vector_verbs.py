"""Verbs on vectors: one call is several jobs, which one idempotency key finds again."""

from __future__ import annotations

import pytest

from batchmill.producer import Client, IdempotencyConflict, ResultTimeout
from batchmill.producer.client.vector_results import GROUP_INPUTS


def test_one_key_stands_for_all_jobs_of_a_call(redis_url: str) -> None:
    texts = [f"text {n}" for n in range(2 * GROUP_INPUTS + 1)]
    with Client(redis_url) as client:
        for _ in range(2):
            with pytest.raises(ResultTimeout):
                client.embed(texts, idempotency_key="night", tags=["one"], timeout_s=0)
            assert len(client.list(tag="one").jobs) == 3
        with pytest.raises(IdempotencyConflict):
            client.embed(texts[1:], idempotency_key="night", timeout_s=0)
        with pytest.raises(ResultTimeout):
            client.score(texts, query="q", idempotency_key="scores", tags=["two"], timeout_s=0)
        assert len(client.list(tag="two").jobs) == 3
