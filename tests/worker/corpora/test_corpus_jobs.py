"""Jobs of a template draft from finished ones, and get the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.producer import Client, JobRejected
from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

from ...engine.tiny_model import save_model
from ...support.processes import CLI, killed_process

CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**26}
PARAMS: dict[str, Any] = {"max_tokens": 40, "seed": 3, "ignore_eos": True}
ROW = {"model": "tiny", "prompt": "the row", **PARAMS}


def accepted(store: JobStore) -> int:
    """Return how many draft tokens from a corpus the worker has accepted."""
    workers = store.list_workers()
    return sum(int(each.stats.get("accepted_tokens_corpus", 0)) for each in workers)


def results_until(client: Client, condition: Callable[[], bool], **fields: Any) -> list[list[int]]:
    """Run jobs one after another until a condition holds; return their tokens."""
    found, deadline = [], time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "no draft token was accepted"
        found.append(list(client.submit(**ROW, **fields).result(timeout_s=120).token_ids))
    return found


def test_rows_of_a_template_draft_from_finished_ones_and_get_the_same_tokens(
    redis_url: str, tmp_path: Path
) -> None:
    model = tmp_path / "tiny"
    save_model(model)
    engine = Engine(EngineConfig(model=str(model), **CONFIG))
    (expected,) = engine.generate(["the row"], SamplingParams(**PARAMS))
    environment = {
        **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
        "BATCHMILL_MODEL": str(model),
        "BATCHMILL_SERVED_MODEL_NAME": "tiny",
        "BATCHMILL_BROKER_URL": redis_url,
        "PYTHONSAFEPATH": "1",
    }
    with Client(redis_url) as client, Redis.from_url(redis_url) as redis:
        store = JobStore(redis)
        with killed_process(*CLI, "worker", environment=environment, log=tmp_path / "log"):
            found = [list(client.submit(**ROW).result(timeout_s=120).token_ids)]
            assert not list(redis.scan_iter(f"{keys.PREFIX}corpus:*"))
            found += results_until(client, lambda: accepted(store) > 20, draft_corpus="rows")
            before = accepted(store)
            others: list[dict[str, Any]] = [
                {"draft_corpus": "off"},
                {"draft_corpus": "rows", "tenant": "acme"},
            ]
            for other in others:
                found.append(list(client.submit(**ROW, **other).result(timeout_s=120).token_ids))
            assert accepted(store) == before
    assert found == [expected.token_ids] * len(found)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"draft_corpus": "no spaces"}, "letters, digits"),
        (
            {"draft_corpus": "rows", "beam_search": {"beam_width": 2}},
            "no effect beside beam_search",
        ),
        ({"draft_corpus": "rows", "explain": ["confidence"]}, "no effect beside explain"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused(
    redis_url: str, fields: dict[str, Any], why: str
) -> None:
    with Client(redis_url) as client, pytest.raises(JobRejected, match=why):
        client.submit(**{**ROW, **fields})
