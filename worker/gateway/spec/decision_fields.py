"""The body of `/v1/decisions` and `/v1/systemone`."""

from __future__ import annotations

from typing import Any

from batchmill.producer.job.decision import Decision

from .body import Body, BodyField, refused, taken
from .requests import CANCELS, USER_FIELDS
from .shapes import NULL, either

_SCHEMA = Decision.model_json_schema()
_PROPERTIES: dict[str, Any] = _SCHEMA["properties"]
#: In the spellings of SGLang and transformers as well, so its fields are left open.
_QUESTIONS = either(
    {"type": "object", "additionalProperties": {"type": "object"}, "minProperties": 1},
    {"type": "array", "items": {"type": "object"}, "minItems": 1},
)
_JSON = {"type": ["string", "object", "array"]}


def _own(name: str) -> BodyField:
    about = " ".join(str(_PROPERTIES[name]["description"]).split())
    schema = {key: value for key, value in _PROPERTIES[name].items() if key != "description"}
    return taken(name, about, either(schema, NULL))


DECISION = Body(
    "DecisionRequest",
    fields=(
        taken("state", "what the questions are about: text, messages, or other JSON", _JSON),
        taken("input", "SGLang's name of `state`", _JSON),
        taken("questions", "the questions by their ids, or SGLang's list with ids", _QUESTIONS),
        _own("instructions"),
        _own("rotations"),
        _own("prior_correction"),
        _own("min_confidence"),
        _own("on_low_confidence"),
        _own("max_tokens"),
        taken(
            "chat_template_kwargs",
            "further variables of the model's template",
            {"type": ["object", "null"]},
        ),
        CANCELS,
        *USER_FIELDS,
        refused("stream", False, meaning="a decision has no text to stream"),
        refused("assets", meaning="give a picture as a part of a message in `state`"),
        refused("images", meaning="give a picture as a part of a message in `state`"),
        refused("seed", meaning="use `rotations`, which averages over orders of the options"),
        refused("prompt_format_version", meaning="there is one format"),
    ),
    own=("model", "metadata"),
    required=("questions",),
    not_taken=("prompt", "messages", "decision"),
)
