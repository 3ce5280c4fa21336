"""One message of a chat, in OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from batchmill.engine.contract import limits
from batchmill.engine.contract.chat import FUNCTION_NAME, Role

from .strictness import STRICT, Text

#: Fields of messages that OpenAI's answers spell out, and the values that say nothing.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
}

FunctionName = Annotated[str, Field(pattern=FUNCTION_NAME)]


def _text_of(content: Any) -> Any:
    """The text of parts of type text, joined by line ends as in vLLM; the rest is not for here."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind is None:
            raise ValueError(f"part {index} has no type: use text, or a list of parts of type text")
        if kind != "text":
            message = (
                f"content part {index} is of type {str(kind)[:40]!r}: this version takes text only"
            )
            raise PydanticCustomError("unsupported_parameter", "{message}", {"message": message})
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError(f"part {index} is not a type and a text, and nothing else")
        texts.append(part["text"])
    return "\n".join(texts)


def _arguments(given: Any) -> Any:
    """A call's arguments as the text of a JSON object; an object is written as one."""
    try:
        text = json.dumps(given) if isinstance(given, dict) else given
        value = json.loads(text) if isinstance(text, str) else {}
        # Escapes of JSON can spell lone surrogates, which UTF-8, and so a prompt, cannot hold.
        json.dumps(value, ensure_ascii=False).encode()
        is_object = isinstance(value, dict)
    except (TypeError, ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ValueError("are no JSON object: send back what the job's result had")
    return text


class FunctionCall(BaseModel):
    """Which function an earlier answer called, and with what."""

    model_config = STRICT

    name: FunctionName
    #: A JSON object, as text.
    arguments: Annotated[Text, BeforeValidator(_arguments)] = Field(repr=False)


class MessageToolCall(BaseModel):
    """A call in an earlier answer."""

    model_config = STRICT

    id: Annotated[Text, Field(min_length=1, max_length=limits.MAX_CALL_ID_CHARS)]
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(BaseModel):
    """One message of a chat."""

    model_config = STRICT

    #: `developer` is OpenAI's newer name for `system`.
    role: Role
    #: Text, or a list of parts of type text; null beside `tool_calls` only.
    content: Annotated[Text | None, BeforeValidator(_text_of)] = Field(default=None, repr=False)
    #: Who speaks; the model's template has to know it.
    name: Annotated[Text, Field(min_length=1, max_length=limits.MAX_MESSAGE_NAME_CHARS)] | None = (
        None
    )
    #: Functions that the assistant called, in a message of its own.
    tool_calls: (
        Annotated[
            list[MessageToolCall], Field(min_length=1, max_length=limits.MAX_CALLS_OF_MESSAGE)
        ]
        | None
    ) = Field(default=None, repr=False)
    #: Which call a message of the role tool answers.
    tool_call_id: (
        Annotated[Text, Field(min_length=1, max_length=limits.MAX_CALL_ID_CHARS)] | None
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_says_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if not (name in _NEUTRAL and value in _NEUTRAL[name])
        }

    @model_validator(mode="after")
    def _fields_of_its_role(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError(f"tool_calls stand in a message of the {self.role}: leave them out")
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing: only a message with tool_calls may lack it")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to each message of the role tool, and no other")
        return self

    @property
    def num_bytes(self) -> int:
        """How much of the job it takes, about."""
        calls = self.tool_calls or ()
        return len((self.content or "").encode()) + sum(
            len(call.function.arguments.encode()) + limits.MAX_FUNCTION_NAME_CHARS for call in calls
        )


def check_answers(messages: list[Message]) -> list[Message]:
    """Check that messages of tools answer calls that were made before them.

    Raises:
        ValueError: one does not.
    """
    call_ids: set[str] = set()
    for index, message in enumerate(messages):
        call_ids |= {call.id for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in call_ids:
            raise ValueError(
                f"message {index} answers a call that no message before it made: send the "
                "assistant's message with the tool_calls as well"
            )
    return messages


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=limits.MAX_MESSAGES),
    AfterValidator(check_answers),
]
