"""Submit accepts and refuses the same chats as the engine."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from batchmill.engine import Chat, RequestError, SamplingParams
from batchmill.engine.lifecycle.tool_use import check_agreement
from batchmill.producer.errors import JobRejected, UnsupportedParameter
from batchmill.producer.job.controls import SamplingControls
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.worker.jobs.engine_request import cache_salt, chat_arguments

from ..support.chat_templates import CLOCK, TOOLS, named

QUESTION = {"role": "user", "content": "How is the weather?"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "a", "content": "2"}
UNENFORCEABLE = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"uniqueItems": True}}}},
}
BAD_SCHEMAS = [
    {"type": "array"},
    {"properties": ["a"]},
    {"properties": {"a": 5}},
    {"required": "a"},
]
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}
BEGUN = [QUESTION, {"role": "assistant", "content": "It is"}]

DEEP: dict[str, Any] = {}
for _ in range(20_000):
    DEEP = {"items": DEEP}


def described(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


GOOD: list[dict[str, Any]] = [
    {"messages": [QUESTION]},
    {"messages": [{"role": "developer", "content": "Be brief."}, QUESTION]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}] * 2}]},
    {"messages": [{**QUESTION, "name": "Anna"}]},
    {"messages": [QUESTION, CALLING, ANSWER]},
    {"messages": [QUESTION, {**CALLING, "content": "Let me see."}, ANSWER], "tools": TOOLS},
    {"messages": [QUESTION], "tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False},
    {"messages": [QUESTION], "tools": TOOLS, "tool_choice": "required"},
    {"messages": [QUESTION], "tools": TOOLS, "tool_choice": named("clock")},
    {"messages": [QUESTION], "tools": [UNENFORCEABLE]},
    {"messages": [QUESTION], "tools": [STRICT], "tool_choice": "required"},
    {"messages": [QUESTION], "tools": [], "tool_choice": "none", "documents": None},
    {"messages": [QUESTION], "tools": TOOLS, "stop": "x", "min_tokens": 3},
    {
        "messages": [QUESTION],
        "tools": TOOLS,
        "tool_choice": "none",
        "response_format": {"type": "json_object"},
    },
    {"messages": [QUESTION], "tools": TOOLS, "response_format": {"type": "text"}},
    {"messages": [QUESTION], "documents": [{"title": "a", "text": "b"}, {"text": "c"}]},
    {"messages": [QUESTION], "chat_template_kwargs": {"enable_thinking": False, "x": None}},
    {"messages": [QUESTION], "add_generation_prompt": False},
    {"messages": BEGUN, "continue_final_message": True},
    {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": False},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_request"),
    ({"messages": [{"role": "user"}]}, "invalid_request"),
    ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "unsupported_parameter"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "unsupported_parameter",
    ),
    (
        {
            "messages": [
                {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[1]"}}]}
            ]
        },
        "invalid_request",
    ),
    (
        {
            "messages": [
                {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}
            ]
        },
        "invalid_request",
    ),
    (
        {
            "messages": [
                {
                    **CALLING,
                    "tool_calls": [
                        {**CALL, "function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}
                    ],
                }
            ]
        },
        "invalid_request",
    ),
    ({"messages": [QUESTION], "tools": [CLOCK, CLOCK]}, "invalid_request"),
    (
        {"messages": [QUESTION], "tools": [{"type": "function", "function": {"name": "a b"}}]},
        "invalid_request",
    ),
    (
        {
            "messages": [QUESTION],
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
            ],
        },
        "invalid_request",
    ),
    ({"messages": [QUESTION], "tools": [{"type": "web_search"}]}, "invalid_request"),
    ({"messages": [QUESTION], "tool_choice": "required"}, "invalid_request"),
    ({"messages": [QUESTION], "tools": TOOLS, "tool_choice": "always"}, "invalid_request"),
    ({"messages": [QUESTION], "tools": TOOLS, "tool_choice": named("other")}, "invalid_request"),
    (
        {"messages": [QUESTION], "tools": [UNENFORCEABLE], "tool_choice": "required"},
        "invalid_request",
    ),
    ({"messages": [QUESTION], "tools": [STRICT]}, "unsupported_parameter"),
    (
        {"messages": [QUESTION], "tools": TOOLS, "response_format": {"type": "json_object"}},
        "invalid_request",
    ),
    (
        {"messages": [QUESTION], "tools": TOOLS, "structured_outputs": {"choice": ["a"]}},
        "invalid_request",
    ),
    (
        {"messages": [QUESTION], "tools": TOOLS, "tool_choice": "required", "stop": "x"},
        "invalid_request",
    ),
    ({"messages": [QUESTION], "documents": [{"title": "a"}]}, "invalid_request"),
    ({"messages": [QUESTION], "chat_template_kwargs": {"messages": "x"}}, "invalid_request"),
    ({"messages": [QUESTION], "chat_template_kwargs": {"x": [1]}}, "invalid_request"),
    ({"messages": [QUESTION], "continue_final_message": True}, "invalid_request"),
    ({"messages": [QUESTION, CALLING], "continue_final_message": True}, "invalid_request"),
    (
        {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True},
        "invalid_request",
    ),
    *(
        (
            {
                "messages": [QUESTION],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            },
            "invalid_request",
        )
        for schema in BAD_SCHEMAS
    ),
]


def check_in_engine(given: dict[str, Any]) -> None:
    """Check the same fields as the engine does before it uses its model."""
    controls = {
        name: value for name, value in given.items() if name in SamplingControls.model_fields
    }
    chat = Chat(**{name: value for name, value in given.items() if name not in controls})
    check_agreement(chat, SamplingParams.from_dict(controls))


@pytest.mark.parametrize("given", GOOD)
def test_a_good_chat_reaches_the_engine_unchanged(given: dict[str, Any]) -> None:
    job = parse_job(given)
    again = parse_document(job.model_dump_json(exclude_none=True))
    assert again == job
    Chat(**chat_arguments(again))
    check_in_engine(given)


@pytest.mark.parametrize(("given", "code"), BAD)
def test_a_job_and_the_engine_refuse_the_same_chats(given: dict[str, Any], code: str) -> None:
    with pytest.raises(JobRejected) as rejected:
        parse_job(given)
    assert rejected.value.code == code
    with pytest.raises(RequestError) as refused:
        check_in_engine(given)
    assert refused.value.code == code


def test_a_part_of_an_unknown_kind_is_refused_by_its_index() -> None:
    parts = [{"type": "text", "text": "See:"}, {"type": "video_url", "video_url": {"url": "x"}}]
    with pytest.raises(
        UnsupportedParameter, match="content part 1 is of type 'video_url'"
    ) as error:
        parse_job({"messages": [QUESTION, {"role": "user", "content": parts}]})
    assert error.value.param == "messages.1.content"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [QUESTION, ANSWER]}, "messages"),
        ({"messages": [QUESTION, {**ANSWER, "tool_call_id": None}]}, "messages.1"),
        ({"messages": [{**QUESTION, "tool_calls": [CALL]}]}, "messages.0"),
        ({"messages": [{**QUESTION, "refusal": "no"}]}, "messages.0.refusal"),
        ({"prompt": "x", "tools": TOOLS}, "tools"),
        ({"prompt": "x", "documents": [{"text": "a"}]}, "documents"),
        ({"prompt": "x", "continue_final_message": True}, "continue_final_message"),
        ({"messages": [QUESTION], "tools": [CLOCK] * 129}, "tools"),
        (
            {
                "messages": [QUESTION],
                "tools": [
                    {"type": "function", "function": {"name": "f", "description": "x" * 300_000}}
                ],
            },
            "tools",
        ),
        ({"messages": [QUESTION], "documents": [{"text": "x" * 600_000}] * 2}, "messages"),
        (
            {"messages": [QUESTION], "chat_template_kwargs": {"x": "y" * 5000}},
            "chat_template_kwargs",
        ),
        (
            {"messages": [QUESTION], "chat_template_kwargs": {"x": math.inf}},
            "chat_template_kwargs",
        ),
        (
            {"messages": [QUESTION], "chat_template_kwargs": {"x": "\ud800"}},
            "chat_template_kwargs",
        ),
        ({"messages": [QUESTION], "chat_template_kwargs": {"x\ud800": 1}}, "chat_template_kwargs"),
        ({"messages": [QUESTION], "tools": [described({"a": math.nan})]}, "tools"),
        ({"messages": [QUESTION], "tools": [described({"a": "\ud800"})]}, "tools"),
        ({"messages": [QUESTION], "tools": [described(DEEP)]}, "tools"),
        ({"messages": [QUESTION], "cache_salt": ""}, "cache_salt"),
        ({"messages": [QUESTION], "cache_salt": "x" * 129}, "cache_salt"),
        ({"messages": [QUESTION], "cache_salt": "\ud800"}, "cache_salt"),
    ],
)
def test_a_bad_field_of_a_chat_is_named(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(JobRejected) as caught:
        parse_job(fields)
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)


def test_a_jobs_own_template_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter, match="the operator puts it") as caught:
        parse_job({"messages": [QUESTION], "chat_template": "{{ messages }}"})
    assert caught.value.param == "chat_template"


def test_empty_fields_of_openais_messages_have_no_effect() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
    }
    job = parse_job({"messages": [QUESTION, {**message, "audio": None, "function_call": None}]})
    assert job == parse_job({"messages": [QUESTION, {"role": "assistant", "content": "Hi"}]})


def test_tenants_and_salts_are_kept_apart_in_every_combination() -> None:
    jobs = [
        parse_job({"prompt": "x", "tenant": tenant, "cache_salt": salt})
        for tenant in (None, "a", "b")
        for salt in (None, "a", '["a", null]')
    ]
    salts = [cache_salt(job, shared_across_tenants=False) for job in jobs]
    assert len(set(salts)) == len(jobs)
    assert salts[0] is None
    assert (
        cache_salt(parse_job({"prompt": "x", "tenant": "default"}), shared_across_tenants=False)
        is None
    )
    shared = [cache_salt(job, shared_across_tenants=True) for job in jobs]
    assert len(set(shared)) == 3


def test_a_chat_is_checked_at_submit_without_torch() -> None:
    program = (
        "import sys\n"
        "from batchmill.producer import GenerationJob\n"
        "tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}\n"
        "user = {'role': 'user', 'content': 'x'}\n"
        "GenerationJob(messages=[user], tools=[tool], tool_choice='required')\n"
        "loaded = {'torch', 'transformers', 'jinja2'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
