"""One trace tells a job whose workers were killed twice: real processes, and OTLP over HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path

from batchmill.producer.tracing.traceparent import TraceContext

from ...support.spans import SeenSpan, draw_tree, paths_of
from .conftest import TracedSite

PAGE = Path(__file__).resolve().parents[3] / "docs" / "traces.md"
PROCESS = "process batchmill.demo.normal"


def trace_of(site: TracedSite, job_id: str) -> list[SeenSpan]:
    """Return the whole trace of the job, once its last span has arrived."""
    context = TraceContext.read(site.stored_context(job_id))
    assert context is not None
    needed = {"send batchmill.demo.normal", "POST", "decode"}

    def is_complete(spans: list[SeenSpan]) -> bool:
        attempts = [span for span in spans if span.name == PROCESS]
        return needed <= {span.name for span in spans} and len(attempts) == 3

    return site.wait_for_spans(context.trace_hex, is_complete, "the spans of the job")


def attempts_of(spans: list[SeenSpan]) -> list[SeenSpan]:
    return sorted((each for each in spans if each.name == PROCESS), key=lambda each: each.start_ns)


def test_one_trace_has_every_attempt_and_who_lost_it(site: TracedSite, killed_twice: str) -> None:
    spans = trace_of(site, killed_twice)
    send = next(span for span in spans if span.name.startswith("send "))
    attempts = attempts_of(spans)
    assert [each.parent_id for each in attempts] == [send.span_id] * 3
    assert all(send.span_id in each.links for each in attempts)
    assert attempts[1].span_id in attempts[2].links
    told = [
        (each.attributes["batchmill.worker"], each.attributes["batchmill.attempt.cause"])
        for each in attempts
    ]
    assert told == [
        ("w1@test", "worker_lost"),
        ("w2@test", "worker_lost"),
        ("w3@test", "completed"),
    ]
    assert [each.has_failed for each in attempts] == [True, True, False]
    assert {span.service for span in spans} == {
        *("batchmill-producer", "batchmill-worker", "batchmill-deliverer"),
    }


def test_each_attempt_has_its_parts_and_continues_where_the_last_one_ended(
    site: TracedSite, killed_twice: str
) -> None:
    spans = trace_of(site, killed_twice)
    saved = 0
    for attempt in attempts_of(spans):
        parts = {span.name for span in spans if span.parent_id == attempt.span_id}
        assert {"queue", "prefill", "checkpoint"} <= parts
        assert attempt.attributes["batchmill.attempt.resumed_tokens"] == saved
        saved = attempt.attributes["batchmill.attempt.output_tokens"]
    assert saved == 60
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 60


def test_the_webhook_continues_the_trace(site: TracedSite, killed_twice: str) -> None:
    spans = trace_of(site, killed_twice)
    (post,) = [span for span in spans if span.name == "POST"]
    (request,) = [each for each in site.hooks.requests if each.path == "/done"]
    assert request.headers["traceparent"].startswith(post.traceparent)
    assert post.attributes["http.response.status_code"] == 204
    assert post.attributes["server.address"] == "127.0.0.1"


def test_the_logs_of_the_job_name_the_job_and_its_trace(
    site: TracedSite, killed_twice: str
) -> None:
    trace_id = trace_of(site, killed_twice)[0].trace_id
    lines = [json.loads(line) for line in site.mill.workers[2].log.splitlines() if line[:1] == "{"]
    settled = [line for line in lines if line["event"] == "job_settled"]
    assert {"job_id": killed_twice, "trace_id": trace_id}.items() <= settled[0].items()


def test_nothing_of_the_prompt_or_the_output_leaves_with_the_spans(
    site: TracedSite, killed_twice: str
) -> None:
    trace_of(site, killed_twice)
    record = site.mill.record(killed_twice)
    assert record.result is not None
    text = json.loads(record.result)["text"]
    sent = b"".join(each.body for each in site.collector.requests)
    assert b"a secret prompt" not in sent
    assert text[:20].encode() not in sent


def test_the_page_shows_the_tree_that_the_job_has(site: TracedSite, killed_twice: str) -> None:
    tree = draw_tree(trace_of(site, killed_twice))
    print(tree)
    (shown,) = re.findall(r"```text\n(send .*?)```", PAGE.read_text(), re.DOTALL)
    assert paths_of(shown) == paths_of(tree)
