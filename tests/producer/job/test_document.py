"""The wire contract: what is accepted, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from batchmill.engine.contract import limits
from batchmill.engine.contract.unsupported import UNSUPPORTED_FIELDS
from batchmill.producer.errors import JobRejected, UnsupportedParameter
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.results import JobResult
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import estimated_tokens, prepare

SETTINGS = ProducerSettings()
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def refused(**fields: Any) -> JobRejected:
    """The error of a job that has a prompt and these fields."""
    with pytest.raises(JobRejected) as caught:
        parse_job({"prompt": "hi"} | fields)
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "hi"},
        {"prompt": [1, 2, 3]},
        {"prompt": "\x00 and 🎈"},
        {"messages": CHAT},
        {"prompt": "x" * limits.MAX_PROMPT_BYTES},
        {"prompt": "hi", "temperature": 0, "top_p": 1, "top_k": -1, "seed": -(2**63)},
        {"prompt": "hi", "stop": "END", "stop_token_ids": [0, 2**32 - 1]},
        {"prompt": "hi", "metadata": {str(i): "v" for i in range(16)}},
        {"prompt": "hi", "webhook": "https://example.com:8443/hook?job=1"},
        {"prompt": "hi", "webhook": "https://[2001:db8::1]/hook"},
        {"prompt": "hi", "deadline": datetime(2030, 1, 1, tzinfo=UTC), "ttl_s": 0.5},
        {"prompt": "hi", "deadline": "2030-01-01T00:00:00+02:00"},
        {"prompt": "hi", "model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    ],
)
def test_a_good_job_survives_the_way_through_json(fields: dict[str, Any]) -> None:
    job = parse_job(fields)
    assert parse_document(job.model_dump_json(exclude_none=True)) == job


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"metadata": None, "tags": None, "priority": None, "webhook_events_filter": None}, {}),
        ({"include_output": None, "stop": None, "n": None}, {}),
        ({"store": False, "modalities": ["text"], "verbosity": "medium", "audio": None}, {}),
        (
            {"max_tokens": 2.0, "top_k": 40.0, "seed": 3.0},
            {"max_tokens": 2, "top_k": 40, "seed": 3},
        ),
        ({"stop_token_ids": [3.0], "temperature": 1.0}, {"stop_token_ids": [3], "temperature": 1}),
        ({"prompt": [1.0, 2]}, {"prompt": [1, 2]}),
    ],
)
def test_null_is_a_missing_field_and_a_whole_number_an_integer(
    fields: dict[str, Any], same: dict[str, Any]
) -> None:
    expected = parse_job({"prompt": "hi", **same})
    assert parse_job({"prompt": "hi", **fields}) == expected
    assert parse_document(json.dumps({"prompt": "hi", **fields})) == expected


def test_an_assistants_message_may_have_the_empty_fields_of_other_servers() -> None:
    message = {"role": "assistant", "content": "y"}
    empty: dict[str, Any] = {"tool_calls": [], "reasoning_content": None, "refusal": None}
    job = parse_job({"messages": [*CHAT, message | empty, CHAT[1]]})
    assert job == parse_job({"messages": [*CHAT, message, CHAT[1]]})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [1, 2**32]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "é" * (limits.MAX_PROMPT_BYTES // 2 + 1)}, "prompt"),
        ({"prompt": [1] * (limits.MAX_PROMPT_TOKENS + 1)}, "prompt"),
        ({"prompt": None}, None),
        ({"messages": CHAT}, None),
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": None, "messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0"),
        ({"prompt": None, "messages": [{"role": "user", "content": [1]}]}, "messages.0.content"),
        ({"prompt": None, "messages": [*CHAT, {**CHAT[0], "nick": "x"}]}, "messages.2.nick"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "\udfff"}]},
            "messages.0.content",
        ),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "x" * 600_000}] * 2},
            "messages",
        ),
        ({"model": "a b"}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x\x06\x163"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "64"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a" * 65]}, "stop.0"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ["\ud800"]}, "stop.0"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 0}, "priority"),
        ({"webhook": "example.com"}, "webhook"),
        ({"webhook": "ftp://example.com/"}, "webhook"),
        ({"webhook": "file:///etc/passwd"}, "webhook"),
        ({"webhook": "https://user:pass@example.com/"}, "webhook"),
        ({"webhook": "https:///path"}, "webhook"),
        ({"webhook": "https://example.com/a b"}, "webhook"),
        ({"webhook": "https://example.com/\r\nX: 1"}, "webhook"),
        ({"webhook": "https://exämple.com/"}, "webhook"),
        ({"webhook": "https://example.com/#part"}, "webhook"),
        ({"webhook": "https://example.com:99999/"}, "webhook"),
        ({"webhook": "https://[::1/"}, "webhook"),
        ({"webhook": "https://example.com/" + "x" * 2048}, "webhook"),
        ({"webhook_events_filter": []}, "webhook_events_filter"),
        ({"webhook_events_filter": ["start"]}, "webhook_events_filter.0"),
        ({"webhook_events_filter": "started"}, "webhook_events_filter"),
        ({"include_output": 1}, "include_output"),
        ({"webhook_secret": "whsec_" + "A" * 32}, "webhook_secret"),
        ({"webhook_secret": "a.b"}, "webhook_secret"),
        ({"webhook_secret": ""}, "webhook_secret"),
        ({"include_output": True}, "include_output"),
        ({"webhook_secret": "billing"}, "webhook_secret"),
        ({"webhook_events_filter": ["started"]}, "webhook_events_filter"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "x" * 256}, "idempotency_key"),
        ({"idempotency_key": "a\nb"}, "idempotency_key"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"metadata": {"k": "x" * 2049}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"k": {"deep": {}}}}, "metadata.k"),
        ({"metadata": {"k": "\ud800"}}, "metadata.k"),
        ({"metadata": [("a", "b")]}, "metadata"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": -1}, "ttl_s"),
        ({"ttl_s": 1e9}, "ttl_s"),
        ({"deadline": "2030-01-01T00:00:00"}, "deadline"),
        ({"deadline": "tomorrow"}, "deadline"),
        ({"max_tokns": 5}, "max_tokns"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], param: str | None) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    "name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"]
)
def test_other_names_for_the_length_are_understood(name: str) -> None:
    assert parse_job({"prompt": "hi", name: 7}).max_tokens == 7


def test_two_names_for_one_parameter_are_refused() -> None:
    error = refused(max_tokens=5, max_new_tokens=6)
    assert error.param == "max_new_tokens"
    assert "another name for max_tokens" in str(error)


def test_an_unknown_parameter_is_refused_by_name() -> None:
    assert "temprature is not a parameter" in str(refused(temprature=1))


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_FIELDS))
def test_a_known_parameter_that_we_cannot_do_is_refused_by_name(name: str) -> None:
    error = refused(**{name: ["something"]})
    assert isinstance(error, UnsupportedParameter)
    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert name in str(error)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_FIELDS))
def test_a_known_parameter_that_asks_for_nothing_is_accepted(name: str) -> None:
    for value in UNSUPPORTED_FIELDS[name].neutral:
        assert parse_job({"prompt": "hi", name: value}) == parse_job({"prompt": "hi"})


@pytest.mark.parametrize(
    ("name", "value"), [("stream", 0), ("best_of", True), ("stream", True), ("num_beams", 2)]
)
def test_a_value_is_not_taken_for_another_of_equal_worth(name: str, value: Any) -> None:
    assert refused(**{name: value}).code == "unsupported_parameter"


def test_a_field_and_an_unsupported_parameter_never_share_a_name() -> None:
    assert not set(GenerationJob.model_fields) & set(UNSUPPORTED_FIELDS)


def test_an_error_never_holds_the_prompt() -> None:
    secret = "the secret prompt"
    errors = [
        refused(prompt=secret, temperature=-1),
        refused(prompt=[secret]),
        refused(prompt=secret, messages=[{"role": secret, "content": secret}]),
        refused(prompt=secret, metadata={"k": [secret]}),
    ]
    with pytest.raises(ValidationError) as caught:
        GenerationJob(prompt=secret, stop=[secret * 10])
    assert not [error for error in [*errors, caught.value] if secret in str(error)]
    assert secret not in repr(GenerationJob(prompt=secret))
    assert secret not in repr(parse_job({"messages": [{"role": "user", "content": secret}]}))


def test_a_document_that_is_not_json_is_refused() -> None:
    for document in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        with pytest.raises(JobRejected):
            parse_document(document)


def test_a_seed_is_drawn_once_at_submit_and_kept() -> None:
    job = parse_job({"prompt": "hi"})
    seeds = {json.loads(prepare(job, SETTINGS).document)["seed"] for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**53 for seed in seeds)
    given = parse_job({"prompt": "hi", "seed": 11})
    assert json.loads(prepare(given, SETTINGS).document)["seed"] == 11


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"beam_search": {"beam_width": 4}, "n": 2}, id="beam_search"),
        pytest.param({"explain": ["uncertainty"], "explain_similarity": 0.9}, id="explain"),
        pytest.param({"n": 2, "select": {"by": "decision", "question": "Right?"}}, id="select"),
        pytest.param({"steering": {"name": "formal", "layers": [1, 2]}}, id="steering"),
        pytest.param({"guidance_scale": 2.0, "negative_prompt": "no"}, id="guidance"),
    ],
)
def test_a_worker_reads_what_a_client_has_stored(fields: dict[str, Any]) -> None:
    job = parse_job({"prompt": "hi", "model": "m"} | fields)
    stored = parse_document(prepare(job, SETTINGS).document)
    assert stored.model_copy(update={"seed": None}) == job
    assert (stored.seed is None) == (job.beam_search is not None)


def test_a_job_without_a_model_takes_the_default() -> None:
    new = prepare(parse_job({"prompt": "hi", "priority": "high"}), ProducerSettings(model="m1"))
    assert (new.model, new.queue) == ("m1", "batchmill.m1.high")
    assert json.loads(new.document)["model"] == "m1"


def test_the_fingerprint_is_of_the_content_alone() -> None:
    def fingerprint(**fields: Any) -> str:
        job = parse_job({"prompt": "hi", "idempotency_key": "k"} | fields)
        return prepare(job, SETTINGS).fingerprint

    assert fingerprint() == fingerprint(idempotency_key="other", n=1, model="demo")
    assert fingerprint(metadata={"a": "1", "b": "2"}) == fingerprint(metadata={"b": "2", "a": "1"})
    different: list[dict[str, Any]] = [
        {},
        {"prompt": "ho"},
        {"seed": 1},
        {"model": "m"},
        {"webhook": "https://a.b/"},
    ]
    assert len({fingerprint(**fields) for fields in different}) == len(different)


def test_webhook_choices_reach_the_store_and_the_ends_are_the_default() -> None:
    hook = {"prompt": "hi", "webhook": "https://example.com/"}
    plain = prepare(parse_job(hook), SETTINGS)
    assert (plain.webhook_events, plain.webhook_secret) == ("", "")
    chosen = {"webhook_events_filter": ["output", "failed"], "webhook_secret": "billing"}
    job = parse_job(hook | chosen | {"include_output": True})
    assert parse_document(job.model_dump_json(exclude_none=True)) == job
    new = prepare(job, SETTINGS)
    assert (new.webhook_events, new.webhook_secret) == ("failed,output", "billing")


def test_plain_http_webhooks_need_the_operator_s_word() -> None:
    job = parse_job({"prompt": "hi", "webhook": "http://localhost:8000/hook"})
    with pytest.raises(JobRejected, match="BATCHMILL_WEBHOOK_ALLOW_HTTP") as caught:
        prepare(job, SETTINGS)
    assert caught.value.param == "webhook"
    allowed = ProducerSettings(webhook_allow_http=True, webhook_allow_ports=("8000",))
    assert prepare(job, allowed).webhook == "http://localhost:8000/hook"
    upper = parse_job({"prompt": "hi", "webhook": "HTTPS://example.com/"})
    assert prepare(upper, SETTINGS).webhook == "HTTPS://example.com/"


@pytest.mark.parametrize("job_id", ["", "a.b", "a:b", "x" * 129, "ü", 'a"b'])
def test_an_id_that_would_break_a_key_or_a_signature_is_refused(job_id: str) -> None:
    with pytest.raises(JobRejected) as caught:
        prepare(parse_job({"prompt": "hi"}), SETTINGS, job_id=job_id)
    assert caught.value.param == "id"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_BROKER_URL", "redis://:hunter2@host/0")
    monkeypatch.setenv("BATCHMILL_RESULT_TTL_S", "60")
    settings = ProducerSettings()
    assert (settings.broker_url, settings.result_ttl_s) == ("redis://:hunter2@host/0", 60)
    assert "hunter2" not in repr(settings)
    monkeypatch.setenv("BATCHMILL_RESULT_TTL_S", "0")
    with pytest.raises(ValidationError, match="result_ttl_s"):
        ProducerSettings()


def test_the_worker_s_environment_suits_the_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_MODEL", "/models/llama")
    with pytest.raises(ValidationError, match="BATCHMILL_SERVED_MODEL_NAME"):
        ProducerSettings()
    monkeypatch.setenv("BATCHMILL_SERVED_MODEL_NAME", "llama")
    new = prepare(parse_job({"prompt": "hi"}), ProducerSettings())
    assert (new.model, new.queue) == ("llama", "batchmill.llama.normal")


def test_a_result_of_a_later_version_is_still_read_and_its_tokens_are_not_in_it() -> None:
    text = '{"id":"j","model":"m","status":"completed","text":"x","mood":"fine"}'
    result = JobResult.model_validate_json(text).model_copy(update={"token_ids": [1, 2]})
    assert (result.text, result.token_ids) == ("x", [1, 2])
    assert "token_ids" not in result.model_dump_json()


def test_whatever_depth_submit_accepts_a_worker_can_read() -> None:
    def nested(depth: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        for _ in range(depth):
            schema = {"type": "object", "properties": {"a": schema}}
        return schema

    def fields(depth: int) -> dict[str, Any]:
        function = {"name": "f", "parameters": nested(depth)}
        chat = {"messages": [{"role": "user", "content": "x"}]}
        return {**chat, "tools": [{"type": "function", "function": function}]}

    job = GenerationJob.model_validate(fields(31))
    assert GenerationJob.model_validate_json(job.model_dump_json()) == job
    with pytest.raises(ValidationError, match="more than 64 deep"):
        GenerationJob.model_validate(fields(60))
    with pytest.raises(ValidationError, match="more than 64 deep"):
        GenerationJob.model_validate({"prompt": "x", "structured_outputs": {"json": nested(60)}})


def test_a_negative_prompt_counts_to_what_a_job_may_need() -> None:
    prompt, guided = {"prompt": [1, 2, 3], "max_tokens": 5}, {"guidance_scale": 2.0}
    for negative, num_tokens in (([7, 8, 9, 10], 4), ("a" * 40, 40 // 4 + 1)):
        job = parse_job({**prompt, **guided, "negative_prompt": negative})
        assert estimated_tokens(job) == 3 + 5 + num_tokens
    assert estimated_tokens(parse_job(prompt)) == 3 + 5
