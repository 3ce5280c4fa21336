"""The body of OpenAI's `POST /v1/responses`."""

from __future__ import annotations

from typing import Any

from batchmill.engine.contract.reasoning import EFFORTS

from .body import Body, mapped, refused, taken
from .requests import CANCELS, STREAM, STREAM_OPTIONS, TIER, USER_FIELDS
from .shapes import FLAG, NULL, TEXT, choice, either, items, named, record

INCLUDE_LOGPROBS = "message.output_text.logprobs"
#: Longest time that a background response may take, by its window; None is as long as it takes.
WINDOWS_S = {"soonest": None, "2h": 7200.0, "8h": 28800.0}

_NOTES: dict[str, Any] = {"id": {}, "status": {}, "phase": {}}
_TEXT_PART = record(
    {"type": {"enum": ["input_text", "output_text", "text"]}, "text": TEXT},
    {"annotations": {}, "logprobs": {}},
)
_IMAGE_PART = named("input_image", {"image_url": TEXT}, {"detail": {"enum": ["auto", None]}})
_SOUND = record({"data": TEXT}, {"format": TEXT})
_SOUND_PART = named("input_audio", {"input_audio": _SOUND})
_CONTENT = either(TEXT, items(either(_TEXT_PART, _IMAGE_PART, _SOUND_PART)))
_ITEM = either(
    record(
        {
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": _CONTENT,
        },
        {"type": {"const": "message"}, **_NOTES},
    ),
    named("function_call", {"call_id": TEXT, "name": TEXT, "arguments": TEXT}, _NOTES),
    named("function_call_output", {"call_id": TEXT, "output": _CONTENT}, _NOTES),
    named("reasoning", {}, {**_NOTES, "summary": {}, "content": {}, "encrypted_content": {}}),
)
_SCHEMA = named(
    "json_schema",
    {"name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}, "schema": {"type": "object"}},
    {"strict": FLAG, "description": TEXT},
)
_FORMAT = either(named("text", {}), named("json_object", {}), _SCHEMA)
_FUNCTION = named(
    "function",
    {"name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}},
    {"description": TEXT, "parameters": {"type": "object"}, "strict": FLAG},
)

RESPONSE = Body(
    "ResponseRequest",
    fields=(
        mapped(
            "input",
            "a text, or items: messages with text, `function_call`, `function_call_output`; "
            "`reasoning` of earlier turns is left out",
            either(TEXT, items(_ITEM)),
        ),
        mapped("instructions", "the first message, of the role `system`", either(TEXT, NULL)),
        mapped(
            "previous_response_id",
            "continues a completed response, without its instructions, as long as it is kept",
            either(TEXT, NULL),
        ),
        mapped("background", "return at once; the response is fetched later", FLAG),
        mapped(
            "background_options",
            "`completion_window` is `soonest`, or `2h` and `8h`: the class `low`, and a deadline",
            either(record({}, {"completion_window": choice(*WINDOWS_S)}), NULL),
        ),
        mapped(
            "store",
            "`false` erases the response once it was sent; not in the background",
            FLAG,
        ),
        STREAM,
        mapped("stream_options", "`include_obfuscation` is refused", STREAM_OPTIONS.schema),
        CANCELS,
        TIER,
        mapped(
            "text",
            "`format` is the structure that the output follows; `verbosity` is refused",
            either(
                record({}, {"format": either(_FORMAT, NULL), "verbosity": choice("medium")}), NULL
            ),
        ),
        mapped(
            "reasoning",
            "`effort` is the `reasoning_effort` of a job; a `summary` is refused, except `auto`",
            either(record({}, {"effort": choice(*EFFORTS), "summary": choice("auto")}), NULL),
        ),
        mapped("tools", "functions; other kinds are refused", either(items(_FUNCTION), NULL)),
        mapped(
            "tool_choice",
            "`auto`, `required`, `none`, or a function by its name",
            either({"enum": ["auto", "required", "none", None]}, named("function", {"name": TEXT})),
        ),
        mapped(
            "include",
            f"`{INCLUDE_LOGPROBS}`; others are refused",
            either(items({"const": INCLUDE_LOGPROBS}, least=0), NULL),
        ),
        mapped(
            "top_logprobs",
            "likeliest tokens per token of the output",
            either({"type": "integer", "minimum": 0, "maximum": 20}, NULL),
        ),
        taken("n", "must be 1", choice(1)),
        *USER_FIELDS,
        refused("select", meaning="a response has one output; chat completions have `n`"),
        refused("access_programs", []),
        refused("context_management", []),
        refused("conversation"),
        refused("cyber"),
        refused("image"),
        refused("max_tool_calls"),
        refused("messages", meaning="use `input`"),
        refused("moderation"),
        refused("prompt", meaning="use `input`"),
        refused("prompt_cache_options"),
        refused("truncation", "disabled"),
    ),
    own=(
        *("max_output_tokens", "metadata", "model", "parallel_tool_calls", "temperature"),
        "top_p",
    ),
    required=("input",),
)
