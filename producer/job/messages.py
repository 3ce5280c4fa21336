"""One message of a chat, in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from batchmill.engine.contract import limits
from batchmill.engine.contract.chat import FUNCTION_NAME, Role
from batchmill.engine.contract.media import MEDIA_TYPES

from .field_checks import STRICT, Text, check_utf8
from .media_parts import MediaPart, MediaPartForms, read_media_part

#: Fields that OpenAI's responses write out in messages, and their values that mean nothing.
NEUTRAL_FIELDS: Final[dict[str, tuple[Any, ...]]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "reasoning": (None, ""),
    "reasoning_content": (None, ""),
    "refusal": (None,),
    "tool_calls": (None, []),
}

#: Of a part that names a medium; the id alone has 68.
_MEDIA_PART_BYTES: Final = 100

FunctionName = Annotated[str, Field(pattern=FUNCTION_NAME)]


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = STRICT

    type: Literal["text"]
    """Kind of the part."""

    text: str
    """Its text."""


#: One part of a content, in the normal form.
ContentPart = TextPart | MediaPart


def read_content(content: Any) -> Any:
    """Return parts in the normal form; text parts alone become one text, as in vLLM.

    Raises:
        ValueError: a part is malformed.
    """
    if isinstance(content, str):
        return check_utf8(content)  # here, because an error of a union names its members
    if not isinstance(content, list):
        return content
    parts = [_read_part(part, index) for index, part in enumerate(content)]
    if all(isinstance(part, TextPart) for part in parts):
        return "\n".join(part.text for part in parts if isinstance(part, TextPart))
    return parts


def _read_part(part: Any, index: int) -> ContentPart:
    if isinstance(part, TextPart | MediaPart):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind is None:
        raise ValueError(f"part {index} has no type: use a text, or parts with a type")
    if isinstance(kind, str) and kind in MEDIA_TYPES:
        return read_media_part(part, f"part {index}")
    if kind != "text":
        message = (
            f"content part {index} is of type {str(kind)[:40]!r}: this version takes text, "
            f"pictures and sounds ({', '.join(MEDIA_TYPES)})"
        )
        raise PydanticCustomError("unsupported_parameter", "{message}", {"message": message})
    if set(part) != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError(f"part {index} must have a type and a text, and nothing else")
    return TextPart(type="text", text=check_utf8(part["text"]))


def _arguments(given: Any) -> Any:
    """Return a call's arguments as the text of a JSON object; an object is encoded."""
    try:
        text = json.dumps(given) if isinstance(given, dict) else given
        value = json.loads(text) if isinstance(text, str) else {}
        # JSON can escape lone surrogates, which UTF-8, and so a prompt, cannot encode.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        is_object = isinstance(value, dict)
    except (TypeError, ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ValueError("must be a JSON object: send back the arguments of the job's result")
    return text


class FunctionCall(BaseModel):
    """A function that an earlier message called, and its arguments."""

    model_config = STRICT

    name: FunctionName
    """Name of the function."""

    arguments: Annotated[
        Text, BeforeValidator(_arguments, json_schema_input_type=str | dict[str, Any])
    ] = Field(repr=False)
    """A JSON object, as text."""


class MessageToolCall(BaseModel):
    """A call in an earlier message of the assistant."""

    model_config = STRICT

    id: Annotated[Text, Field(min_length=1, max_length=limits.MAX_CALL_ID_CHARS)]
    """Id of the call, which the tool's message repeats as `tool_call_id`."""

    type: Literal["function"] = "function"
    """Kind of the tool."""

    function: FunctionCall
    """The function and its arguments."""


class Message(BaseModel):
    """One message of a chat."""

    model_config = STRICT

    role: Role
    """`developer` is OpenAI's newer name for `system`."""

    content: Annotated[
        Text | list[ContentPart] | None,
        BeforeValidator(
            read_content, json_schema_input_type=str | list[TextPart | MediaPartForms] | None
        ),
    ] = Field(default=None, repr=False)
    """Text, or a list of parts: text, pictures and sounds (docs/media.md). Null only in a message
    with `tool_calls`."""

    name: Annotated[Text, Field(min_length=1, max_length=limits.MAX_MESSAGE_NAME_CHARS)] | None = (
        None
    )
    """Name of the speaker; the model's template must know names."""

    tool_calls: (
        Annotated[
            list[MessageToolCall], Field(min_length=1, max_length=limits.MAX_CALLS_OF_MESSAGE)
        ]
        | None
    ) = Field(default=None, repr=False)
    """Functions that the assistant called in this message."""

    tool_call_id: (
        Annotated[Text, Field(min_length=1, max_length=limits.MAX_CALL_ID_CHARS)] | None
    ) = None
    """The call that a message of the role tool answers."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if not (name in NEUTRAL_FIELDS and value in NEUTRAL_FIELDS[name])
        }

    @model_validator(mode="after")
    def _check_fields_of_role(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError(
                f"a message of the {self.role} must not have tool_calls: leave them out"
            )
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing: only a message with tool_calls can go without")
        if self.role == "assistant" and self.media:
            raise ValueError(
                "a message of the assistant must not have pictures or sounds: put them into one of "
                "the user"
            )
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to every message of the role tool, and no other")
        return self

    @property
    def parts(self) -> Sequence[ContentPart]:
        """The content as parts; empty without one."""
        if isinstance(self.content, str):
            return (TextPart(type="text", text=self.content),)
        return self.content or ()

    @property
    def text(self) -> str:
        """The text of the content, without its pictures and sounds."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def media(self) -> list[MediaPart]:
        """Its pictures and sounds, in order."""
        return [part for part in self.parts if isinstance(part, MediaPart)]

    @property
    def num_bytes(self) -> int:
        """Approximate size in the job's document; stored media are not part of it."""
        calls = self.tool_calls or ()
        return (
            len(self.text.encode())
            + len(self.media) * _MEDIA_PART_BYTES
            + sum(
                len(call.function.arguments.encode()) + limits.MAX_FUNCTION_NAME_CHARS
                for call in calls
            )
        )


def check_answers(messages: list[Message]) -> list[Message]:
    """Check that each message of a tool answers an earlier call, and return the messages.

    Raises:
        ValueError: a message answers a call that was not made.
    """
    call_ids: set[str] = set()
    for index, message in enumerate(messages):
        call_ids |= {call.id for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in call_ids:
            raise ValueError(
                f"message {index} answers a call that no earlier message made: send the "
                "assistant's message with the tool_calls as well"
            )
    return messages


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=limits.MAX_MESSAGES),
    AfterValidator(check_answers),
]
