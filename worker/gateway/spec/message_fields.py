"""The bodies of Anthropic's messages and batches of messages."""

from __future__ import annotations

from typing import Any

from batchmill.engine.contract.reasoning import EFFORTS

from .body import Body, mapped, no_effect, refused, taken
from .requests import CANCELS, SERVICE_TIERS, STREAM
from .shapes import FLAG, NULL, TEXT, choice, either, items, named, record

_CACHE: dict[str, Any] = {"cache_control": {}}
_TEXT_BLOCK = named("text", {"text": TEXT}, {**_CACHE, "citations": {}})
_TEXTS = either(TEXT, items(_TEXT_BLOCK))
_IMAGE = named(
    "image",
    {
        "source": either(
            named("base64", {"data": TEXT}, {"media_type": TEXT}), named("url", {"url": TEXT})
        )
    },
    _CACHE,
)
_PARTS = either(TEXT, items(either(_TEXT_BLOCK, _IMAGE)))
_RESULT = named(
    "tool_result", {"tool_use_id": TEXT}, {"content": _PARTS, "is_error": FLAG, **_CACHE}
)
_CALL = named("tool_use", {"id": TEXT, "name": TEXT, "input": {"type": "object"}}, _CACHE)
_THOUGHTS = (
    named("thinking", {"thinking": TEXT}, {"signature": {}, **_CACHE}),
    named("redacted_thinking", {"data": TEXT}, _CACHE),
)
_MESSAGE = either(
    record(
        {
            "role": {"const": "user"},
            "content": either(TEXT, items(either(_TEXT_BLOCK, _IMAGE, _RESULT))),
        }
    ),
    record(
        {
            "role": {"const": "assistant"},
            "content": either(TEXT, items(either(_TEXT_BLOCK, _CALL, *_THOUGHTS))),
        }
    ),
)
_TOOL = record(
    {"name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}},
    {
        "type": choice("custom"),
        "description": TEXT,
        "input_schema": {"type": "object"},
        "strict": FLAG,
        **_CACHE,
    },
)
_SERIAL = {"disable_parallel_tool_use": FLAG}
_CHOICE = either(
    NULL,
    *(named(kind, {}, _SERIAL) for kind in ("auto", "any", "none")),
    named("tool", {"name": TEXT}, _SERIAL),
)
_FORMAT = named("json_schema", {"schema": {"type": "object"}})

MESSAGE = Body(
    "MessageRequest",
    fields=(
        mapped(
            "messages",
            "texts, or blocks of the types `text`, `image`, `tool_use` and `tool_result`; "
            "`thinking` of earlier turns is left out; documents are refused",
            items(_MESSAGE),
        ),
        mapped("system", "the first message: a text, or blocks of text", either(_TEXTS, NULL)),
        taken("max_tokens", "most tokens to generate", {"type": "integer", "minimum": 0}),
        STREAM,
        CANCELS,
        mapped(
            "service_tier",
            "`standard_only` is the class `normal`; `auto` leaves it to the key",
            choice(*SERVICE_TIERS),
        ),
        mapped(
            "tools",
            "functions with an `input_schema`; server tools are refused",
            either(items(_TOOL), NULL),
        ),
        mapped(
            "tool_choice",
            "`auto`, `any`, `none`, or `tool` with a name; "
            "`disable_parallel_tool_use` ends the output after a call",
            _CHOICE,
        ),
        mapped(
            "output_config",
            "`format` is a JSON schema to follow; `effort` is the `reasoning_effort` of a job",
            either(record({}, {"format": either(_FORMAT, NULL), "effort": choice(*EFFORTS)}), NULL),
        ),
        mapped(
            "thinking",
            "`enabled` gives thoughts a budget, which is `budget_tokens`; `disabled` is the "
            "`reasoning_effort` `none`; `adaptive` leaves it to the model",
            either(
                named("enabled", {"budget_tokens": {"type": "integer", "minimum": 1}}),
                named("disabled", {}),
                named("adaptive", {}),
                NULL,
            ),
        ),
        mapped(
            "metadata",
            "`user_id` is accepted, and nothing depends on it; others are those of the job",
            either({"type": "object", "additionalProperties": TEXT}, NULL),
        ),
        taken("n", "must be 1", choice(1)),
        no_effect("cache_control", "prefixes are cached without it"),
        refused("select", meaning="a message has one output; chat completions have `n`"),
        refused("container"),
        refused("context_management"),
        refused("diagnostics"),
        refused("fallbacks", []),
        refused("inference_geo"),
        refused("mcp_servers", []),
        refused("prompt", meaning="use `messages`"),
        refused("speed", "standard"),
        refused("user_profile_id"),
        refused("workspace_id"),
    ),
    own=("model", "stop_sequences", "temperature", "top_k", "top_p"),
    required=("max_tokens", "messages"),
)

_REQUEST = record(
    {
        "custom_id": {"type": "string", "minLength": 1, "maxLength": 64},
        "params": {"$ref": f"#/components/schemas/{MESSAGE.title}"},
    }
)
MESSAGE_BATCH = Body(
    "MessageBatchCreateRequest",
    fields=(
        mapped(
            "requests",
            "each has a `custom_id`, and the fields of a message as `params`; `stream` is refused",
            items(_REQUEST, most=50_000),
        ),
    ),
    required=("requests",),
    takes_job=False,
)
