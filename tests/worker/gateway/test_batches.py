"""The stock OpenAI client uploads a file, runs it as a batch and fetches its results."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai as sdk
import psutil
import pytest
from openai import OpenAI

from ...conftest import RedisServer
from ..conftest import Mill
from .conftest import DEADLINE_S, Site, Start, client_of, make_key, start_worker

Reference = Callable[..., tuple[list[int], str]]


def chat_line(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    fields = {"model": "demo", "messages": messages, "max_tokens": 4, "seed": 7, **body}
    return {
        "custom_id": f"line {number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": fields,
    }


def upload(client: OpenAI, lines: list[Any], **fields: Any) -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    file = ("questions.jsonl", io.BytesIO(text.encode()))
    return str(client.files.create(file=file, purpose="batch", **fields).id)


def create(client: OpenAI, file_id: str, **fields: Any) -> Any:
    return client.batches.create(
        **{
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **fields,
        }
    )


def wait_ended(client: OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while (batch := client.batches.retrieve(batch_id)).status in (
        *("validating", "in_progress", "finalizing", "cancelling"),
    ):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def results(client: OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_file_becomes_a_batch_and_its_results_come_in_its_order(
    openai: OpenAI, site: Site, reference: Reference
) -> None:
    file_id = upload(openai, [chat_line(1), chat_line(2, messages=[BAD]), chat_line(3)])
    batch = create(openai, file_id, metadata={"team": "a"})
    assert (batch.status, batch.input_file_id) == ("validating", file_id)
    assert (batch.endpoint, batch.completion_window) == ("/v1/chat/completions", "24h")
    batch = wait_ended(openai, batch.id)
    counts = batch.request_counts
    assert (batch.status, batch.model, batch.metadata) == ("completed", "demo", {"team": "a"})
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    found = results(openai, batch.output_file_id)
    assert [line["custom_id"] for line in found] == ["line 1", "line 3"]
    used = [line["response"]["body"]["usage"] for line in found]
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in used) + 1
    assert batch.usage.input_tokens > sum(each["prompt_tokens"] for each in used)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    body = found[0]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == reference("<user>question 1", 4)[1]
    assert site.mill.record(body["id"]).queue == "batchmill.demo.low"
    (failed,) = results(openai, batch.error_file_id)
    assert (failed["custom_id"], failed["error"]["code"]) == ("line 2", "numerical_error")
    output = openai.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.bytes == len(openai.files.content(batch.output_file_id).content)


BAD = {"role": "user", "content": "<<error@1>>"}


def test_text_completions_are_an_endpoint_too(openai: OpenAI, reference: Reference) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    line["body"] = {"model": "demo", "prompt": "hello", "max_tokens": 3, "seed": 7}  # type: ignore[assignment]
    batch = create(openai, upload(openai, [line]), endpoint="/v1/completions")
    (found,) = results(openai, wait_ended(openai, batch.id).output_file_id)
    assert found["response"]["body"]["choices"][0]["text"] == reference("hello", 3)[1]


def test_responses_are_an_endpoint_too(openai: OpenAI, reference: Reference) -> None:
    line: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/responses"}
    body = {"model": "demo", "input": "hello", "instructions": "Be brief.", "seed": 7}
    line["body"] = {**body, "max_output_tokens": 3}
    failing = {**line, "custom_id": "b", "body": {**body, "input": "<<error@1>>"}}
    refused = [
        {**line, "custom_id": name, "body": {**body, name: value}}
        for name, value in (
            ("background", True),
            ("store", False),
            ("previous_response_id", "resp_1"),
            ("stream", True),
        )
    ]
    ended = wait_ended(
        openai, create(openai, upload(openai, [line, failing]), endpoint="/v1/responses").id
    )
    (found,) = results(openai, ended.output_file_id)
    response = found["response"]["body"]
    text = reference("<system>Be brief.<user>hello", 3)[1]
    assert response["output"][0]["content"][0]["text"] == text
    assert (response["instructions"], response["usage"]["output_tokens"]) == ("Be brief.", 3)
    assert openai.responses.retrieve(response["id"]).to_dict() == response
    (failed,) = results(openai, ended.error_file_id)
    assert (failed["custom_id"], failed["error"]["code"]) == ("b", "numerical_error")
    wrong = wait_ended(openai, create(openai, upload(openai, refused), endpoint="/v1/responses").id)
    assert [error.param for error in wrong.errors.data] == [each["custom_id"] for each in refused]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "unsupported_endpoint", "endpoint"),
        ({"endpoint": "/v1/nonsense"}, "invalid_request", "endpoint"),
        ({"extra_body": {"ttl_s": 5}}, "unsupported_parameter", "ttl_s"),
        ({"extra_body": {"tenant": "another"}}, "unsupported_parameter", "tenant"),
    ],
)
def test_what_a_batch_cannot_be_is_refused_by_name(
    openai: OpenAI, fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        create(openai, "file-none", **fields)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_wrong_lines_are_all_named_and_nothing_runs(openai: OpenAI) -> None:
    lines = [
        chat_line(1),
        chat_line(2, temperature=-1),
        "{",
        chat_line(1),
        {**chat_line(5), "url": "/v1/completions"},
        {**chat_line(6), "custom_id": None},
        chat_line(7, stream=True),
        chat_line(8, tenant="another"),
        chat_line(9, audio={}),
        chat_line(10, lora="unknown"),
    ]
    batch = wait_ended(openai, create(openai, upload(openai, lines)).id)
    assert (batch.status, batch.request_counts.total) == ("failed", 0)
    found = [(error.line, error.param or error.code) for error in batch.errors.data]
    assert found == [
        (2, "temperature"),
        (3, "invalid_line"),
        (4, "custom_id"),
        (5, "url"),
        (6, "custom_id"),
        (7, "stream"),
        (8, "tenant"),
        (9, "audio"),
        (10, "lora"),
    ]
    assert batch.output_file_id is None


def test_an_empty_file_and_one_with_too_many_lines_fail_their_batch(
    redis_server: RedisServer, start_gateway: Start, tmp_path: Path
) -> None:
    url = start_gateway(
        redis_server.url, gateway_files_url=tmp_path / "f", gateway_max_file_lines=2
    ).url
    client = client_of(url, "none")
    batch = wait_ended(client, create(client, upload(client, ["", " "])).id)
    assert [error.code for error in batch.errors.data] == ["empty_file"]
    many = upload(client, [chat_line(number) for number in range(3)])
    batch = wait_ended(client, create(client, many).id)
    assert [error.code for error in batch.errors.data] == ["too_many_lines"]


def test_files_may_be_behind_any_fsspec_url(
    redis_server: RedisServer, start_gateway: Start
) -> None:
    # A store in the gateway's own memory: the calls are those of any other, such as S3.
    client = client_of(start_gateway(redis_server.url, gateway_files_url="memory://a/b").url, "k")
    file_id = upload(client, [chat_line(1, temperature=-1), chat_line(2)])
    assert json.loads(client.files.content(file_id).text.splitlines()[1])["custom_id"] == "line 2"
    batch = wait_ended(client, create(client, file_id).id)
    assert [(error.line, error.param) for error in batch.errors.data] == [(1, "temperature")]
    client.files.delete(file_id)
    with pytest.raises(sdk.NotFoundError):
        client.files.content(file_id)


def test_files_are_listed_in_pages_and_deleted(site: Site) -> None:
    client = client_of(site.url, make_key(site.mill, tenant="lister"))
    ids = [upload(client, [chat_line(number)]) for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    file = client.files.retrieve(ids[0])
    assert (file.filename, file.status, file.purpose) == ("questions.jsonl", "processed", "batch")
    content = client.files.content(ids[0]).content
    assert len(content) == file.bytes
    assert json.loads(content)["custom_id"] == "line 0"
    assert client.files.delete(ids[0]).deleted
    with pytest.raises(sdk.NotFoundError):
        client.files.content(ids[0])
    assert not (site.files / ids[0]).exists()
    assert [file.id for file in client.files.list()] == ids[:0:-1]


def test_a_file_may_expire_early(openai: OpenAI) -> None:
    after = {"anchor": "created_at", "seconds": 3600}
    file = openai.files.retrieve(upload(openai, [chat_line(1)], expires_after=after))
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(sdk.BadRequestError, match="must be from 3600"):
        upload(openai, [chat_line(1)], expires_after={"anchor": "created_at", "seconds": 1})


def test_wrong_uploads_are_refused_and_leave_nothing(
    openai: OpenAI, http: httpx2.Client, site: Site
) -> None:
    before = set(site.files.iterdir())
    with pytest.raises(sdk.BadRequestError, match="purpose must be batch"):
        openai.files.create(file=b"{}", purpose="fine-tune")
    for content_type, body in (
        ("application/json", b"{}"),
        ("multipart/form-data; boundary=x", b"nonsense"),
        ("multipart/form-data; boundary=x", b"--x\r\n"),
    ):
        response = http.post("/v1/files", content=body, headers={"content-type": content_type})
        assert response.status_code == 400, response.text
    assert set(site.files.iterdir()) == before


def test_objects_of_another_tenant_do_not_exist(openai: OpenAI, site: Site) -> None:
    file_id = upload(openai, [chat_line(1)])
    batch = wait_ended(openai, create(openai, file_id).id)
    other = client_of(site.url, make_key(site.mill, tenant="other"))
    calls: list[Callable[[], Any]] = [
        lambda: other.files.retrieve(file_id),
        lambda: other.files.content(file_id),
        lambda: other.files.delete(file_id),
        lambda: other.files.content(batch.output_file_id),
        lambda: other.files.retrieve(batch.output_file_id),
        lambda: create(other, file_id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
    ]
    for call in calls:
        with pytest.raises(sdk.NotFoundError):
            call()
    assert list(other.batches.list()) == []
    assert openai.files.retrieve(file_id).id == file_id


def test_batches_are_listed_in_pages(site: Site) -> None:
    client = client_of(site.url, make_key(site.mill, tenant="batches"))
    file_id = upload(client, [chat_line(1)])
    ids = [create(client, file_id).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == ids[::-1]


def test_a_batch_is_cancelled(openai: OpenAI) -> None:
    lines = [chat_line(number, max_tokens=900) for number in range(300)]
    batch = create(openai, upload(openai, lines))
    openai.batches.cancel(batch.id)
    batch = wait_ended(openai, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed < 300


def test_the_same_idempotency_key_is_the_same_batch(openai: OpenAI) -> None:
    file_id = upload(openai, [chat_line(1)])
    once = {"extra_headers": {"Idempotency-Key": "batch-once"}}
    assert create(openai, file_id, **once).id == create(openai, file_id, **once).id
    with pytest.raises(sdk.ConflictError):
        create(openai, upload(openai, [chat_line(2)]), **once)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"input_file_id": "file-none"}, None),
        ({"extra_body": {"bogus": 1}}, "bogus"),
        ({"metadata": {"a": 1}}, "metadata.a"),
    ],
)
def test_wrong_fields_of_a_batch_are_named(
    openai: OpenAI, fields: dict[str, Any], param: str | None
) -> None:
    file_id = upload(openai, [chat_line(1)])
    with pytest.raises(sdk.APIStatusError) as caught:
        create(openai, file_id, **fields)
    assert caught.value.status_code == (400 if param else 404)
    assert caught.value.param == param


def test_another_gateway_continues_when_one_is_killed_while_it_reads_a_file(
    redis_server: RedisServer, tmp_path: Path, start_gateway: Start
) -> None:
    """The queue is too full for the file; the first gateway dies while it waits."""
    options = {"gateway_files_url": tmp_path / "f", "max_queue_depth": 5}
    first = start_gateway(redis_server.url, **options)
    client = client_of(first.url, "none")
    batch = create(client, upload(client, [chat_line(number) for number in range(40)]))
    mill = Mill(redis_server.url, tmp_path)
    mill.wait_for(
        lambda: mill.store.client.zcard(f"batchmill:batch_jobs:{batch.id}") == 5, "5 jobs"
    )
    first.kill()
    # Nobody waits for the lease of half a minute here.
    mill.store.client.zadd("batchmill:batch_intakes", {batch.id: 0})
    second = start_gateway(redis_server.url, **options)
    start_worker(mill)
    client = client_of(second.url, "none")
    batch = wait_ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 40)
    found = results(client, batch.output_file_id)
    assert [line["custom_id"] for line in found] == [f"line {number}" for number in range(40)]
    mill.close()


def test_a_large_file_takes_bounded_memory(
    redis_server: RedisServer, tmp_path: Path, start_gateway: Start
) -> None:
    """Twice 40 MB of lines: the gateway does not grow by as much as one of them."""
    gateway = start_gateway(redis_server.url, gateway_files_url=tmp_path / "f")
    process, client = psutil.Process(gateway.process.pid), client_of(gateway.url, "none")
    upload(client, [chat_line(1)])
    before = process.memory_info().rss
    path = tmp_path / "large.jsonl"
    line = json.dumps(chat_line(1, messages=[{"role": "user", "content": "x" * 4_000_000}])) + "\n"
    path.write_text(line * 10)
    for _ in range(2):
        with path.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        assert uploaded.bytes == path.stat().st_size
        with client.files.with_streaming_response.content(uploaded.id) as response:
            assert sum(map(len, response.iter_bytes())) == uploaded.bytes
    assert process.memory_info().rss - before < 30_000_000


@pytest.mark.nightly
def test_a_batch_of_many_lines_takes_bounded_memory(openai: OpenAI, site: Site) -> None:
    """6 MB of lines and as many results; `tests/bench/gateway_50k.py` does it with more."""
    process = psutil.Process(site.gateway.process.pid)
    small = wait_ended(openai, create(openai, upload(openai, [chat_line(1)])).id)
    results(openai, small.output_file_id)
    before = process.memory_info().rss
    message = {"role": "user", "content": "x" * 4000}
    file_id = upload(openai, [chat_line(number, messages=[message]) for number in range(1500)])
    batch = wait_ended(openai, create(openai, file_id).id)
    assert batch.request_counts.completed == 1500
    with openai.files.with_streaming_response.content(batch.output_file_id) as response:
        names = [json.loads(line)["custom_id"] for line in response.iter_lines()]
    assert names == [f"line {number}" for number in range(1500)]
    assert process.memory_info().rss - before < 20_000_000


def test_large_lines_and_results_go_to_the_object_store(
    mill: Mill, start_gateway: Start, tmp_path: Path
) -> None:
    large: dict[str, Any] = {"payload_url": tmp_path / "objects", "payload_threshold_bytes": 256}
    start_worker(mill, lease_s=15, **large)
    client = client_of(start_gateway(mill.url, **large).url, make_key(mill))
    words = "large " * 200
    file_id = upload(client, [chat_line(1, messages=[{"role": "user", "content": words}])])
    batch = wait_ended(client, create(client, file_id).id)
    assert batch.request_counts.completed == 1
    (found,) = results(client, batch.output_file_id)
    assert found["response"]["body"]["choices"]
    fields = {path.name.split(".")[1] for path in (tmp_path / "objects").iterdir()}
    assert fields == {"doc", "result"}
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": words}], max_tokens=4
    )
    assert answer.choices[0].message.content
