"""The page of request controls is current, and every control has a test."""

from __future__ import annotations

from dataclasses import fields

from batchmill.engine import SamplingParams
from batchmill.producer.job.document import GenerationJob

from .feature_table import ASKED, PAGE, ROOT, marked_tests, page

#: Fields of a job that ask for nothing: its input, and how it waits, is found and is delivered.
INPUT_AND_DELIVERY = {
    *("prompt", "messages", "model", "documents", "tools", "tool_choice", "parallel_tool_calls"),
    *("chat_template_kwargs", "add_generation_prompt", "continue_final_message", "cache_salt"),
    *("priority", "tenant", "ttl_s", "deadline", "delay_s", "not_before", "retry", "traceparent"),
    *("webhook", "webhook_events_filter", "webhook_secret", "include_output", "idempotency_key"),
    *("metadata", "tags"),
}


def test_the_page_of_request_controls_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python tests/structure/feature_table.py --write"


def test_every_control_has_a_test_and_every_mark_names_a_control() -> None:
    assert set(marked_tests()) == {field.name for field in fields(SamplingParams)}


def test_the_tests_that_the_page_names_exist() -> None:
    for test in [test for _, test in ASKED.values()]:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), test


def test_every_field_of_a_job_that_asks_for_something_has_a_row() -> None:
    asking = set(GenerationJob.model_fields) - INPUT_AND_DELIVERY
    assert asking == {field.name for field in fields(SamplingParams)} - {"detokenize"} | set(ASKED)
