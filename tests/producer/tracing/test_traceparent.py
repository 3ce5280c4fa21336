"""A `traceparent` is read as W3C says, and an invalid one is ignored."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import fingerprint, prepare
from batchmill.producer.tracing.traceparent import (
    TraceContext,
    read_traceparent,
    trace_fields,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"

INVALID = (
    *("", "00", "garbage", VALID.upper(), VALID[:-1], VALID + "0", VALID + "-00", f" {VALID}"),
    *(f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
    *(
        VALID + "\n",
        VALID.replace("-", "_"),
        f"01-{TRACE}-{SPAN}-01{'x' * 600}",
        f"{VALID}\r\nx: y",
    ),
    "\u0660\u0660-" + VALID[3:],
    *(17, None, 1.5, True, [VALID], {"traceparent": VALID}, b"\xff" * 55),
)


@pytest.mark.parametrize(
    "value", [VALID, VALID.encode(), f"cc-{TRACE}-{SPAN}-01-of-a-later-version"]
)
def test_a_valid_context_is_read_and_written_as_version_00(value: object) -> None:
    assert read_traceparent(value) == VALID
    assert trace_fields(value) == {"trace_id": TRACE}


def test_flags_are_kept() -> None:
    assert read_traceparent(f"00-{TRACE}-{SPAN}-02") == f"00-{TRACE}-{SPAN}-02"


@pytest.mark.parametrize("value", INVALID)
def test_an_invalid_context_is_ignored(value: object) -> None:
    assert read_traceparent(value) is None
    assert trace_fields(value) == {}
    job = parse_job({"prompt": "hi", "traceparent": value})
    assert job.traceparent is None


@given(st.one_of(st.text(), st.binary(), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-.{16}-..")))
def test_whatever_is_read_is_a_context_or_nothing(value: object) -> None:
    found = TraceContext.read(value)
    assert found is None or TraceContext.read(str(found)) == found


def test_the_context_is_part_of_the_record_and_not_of_the_document() -> None:
    job = parse_job({"prompt": "hi", "traceparent": VALID, "seed": 1})
    new = prepare(job, ProducerSettings())
    assert new.traceparent == VALID
    assert "traceparent" not in json.loads(new.document)
    assert parse_document(new.document).traceparent is None


def test_the_same_job_in_another_trace_has_the_same_fingerprint() -> None:
    fields = {"prompt": "hi", "idempotency_key": "k"}
    assert fingerprint(parse_job(fields)) == fingerprint(
        parse_job({**fields, "traceparent": VALID})
    )
