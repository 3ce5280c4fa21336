"""A caller's trace continues at each entrance, and a damaged one is ignored at each."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.tracing.traceparent import TraceContext

from ...support.processes import CLI, run
from ...support.spans import SeenSpan
from ..gateway.conftest import Gateway, make_key, new_client
from .conftest import TracedSite

#: Submits a job with a `traceparent`, and returns the job's id.
Submit = Callable[[TracedSite, str], str]


def by_client(site: TracedSite, traceparent: str) -> str:
    with Client(site.server.url) as client:
        return client.submit("hi", max_tokens=2, traceparent=traceparent).id


def by_batch_line(site: TracedSite, traceparent: str) -> str:
    with site.client() as client:
        batch = client.create_batch([{"prompt": "hi", "max_tokens": 2, "traceparent": traceparent}])
        (entry,) = client.batch_results(batch.id, timeout_s=60)
        return entry.job.id


def by_inbox(site: TracedSite, traceparent: str) -> str:
    job_id = f"inbox_{secrets.token_hex(4)}"
    document = {"id": job_id, "prompt": "hi", "max_tokens": 2, "traceparent": traceparent}
    site.mill.store.client.lpush(keys.INBOX, json.dumps(document))
    return job_id


def by_celery_task(site: TracedSite, traceparent: str) -> str:
    sent = site.mill.celery.send_task(
        keys.TASK_NAME,
        kwargs={"job": {"prompt": "hi", "max_tokens": 2}},
        queue="batchmill.demo.normal",
        headers={"traceparent": traceparent},
        ignore_result=True,
    )
    return str(sent.id)


def by_command(site: TracedSite, traceparent: str) -> str:
    environment = {
        "BATCHMILL_BROKER_URL": site.server.url,
        "BATCHMILL_TRACES": "1",
        "TRACEPARENT": traceparent,
    }
    arguments = (*CLI, "submit", "hi", "--raw", "--max-tokens", "2", "--json")
    return str(json.loads(run(*arguments, environment=environment))["id"])


ENTRANCES = (by_client, by_batch_line, by_inbox, by_celery_task, by_command)


def new_traceparent() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def process_span(site: TracedSite, job_id: str) -> SeenSpan:
    """Return the span of a job's only attempt."""
    site.mill.wait_for(lambda: site.mill.store.load(job_id) is not None, "the record")
    site.mill.wait_ended(job_id)
    context = TraceContext.read(site.stored_context(job_id))

    def is_of_job(span: SeenSpan) -> bool:
        is_process = span.name.startswith("process ")
        return is_process and span.attributes["messaging.message.id"] == job_id

    found: list[SeenSpan] = []

    def has_arrived() -> bool:
        found[:] = [span for span in site.all_spans() if is_of_job(span)]
        return bool(found)

    site.mill.wait_for(has_arrived, "the span of the attempt")
    assert context is None or found[0].trace_id == context.trace_hex
    return found[0]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("submit", ENTRANCES)
def test_the_trace_of_a_caller_continues(site: TracedSite, submit: Submit) -> None:
    caller = new_traceparent()
    assert process_span(site, submit(site, caller)).trace_id == caller.split("-")[1]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("submit", ENTRANCES)
def test_a_damaged_context_is_ignored(site: TracedSite, submit: Submit) -> None:
    damaged = new_traceparent().replace("-01", "-zz") + "'); --"
    span = process_span(site, submit(site, damaged))
    assert span.trace_id != damaged.split("-")[1]


@pytest.mark.usefixtures("worker")
def test_the_gateway_continues_the_trace_of_a_request(site: TracedSite, tmp_path: Path) -> None:
    caller = new_traceparent()
    gateway = Gateway(
        site.server.url, tmp_path / "gateway.log", traces=True, gateway_files_url=tmp_path / "files"
    )
    try:
        with new_client(gateway.url, make_key(site.mill)) as client:
            completion = client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "hi"}],
                max_tokens=2,
                extra_headers={"traceparent": caller},
            )
            damaged = client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "hi"}],
                max_tokens=2,
                extra_headers={"traceparent": "damaged"},
            )
        attempt = process_span(site, completion.id)
        assert attempt.trace_id == caller.split("-")[1]
        spans = site.wait_for_spans(
            attempt.trace_id,
            lambda spans: any(span.name.startswith("POST ") for span in spans),
            "the span of the request",
        )
        by_name = {span.name: span for span in spans}
        request = by_name["POST /v1/chat/completions"]
        assert request.parent_id == caller.split("-")[2]
        assert by_name["send batchmill.demo.normal"].parent_id == request.span_id
        assert request.attributes["http.response.status_code"] == 200
        assert process_span(site, damaged.id).trace_id not in ("", attempt.trace_id)
    finally:
        gateway.close()
