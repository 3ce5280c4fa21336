"""The chat of a job: messages, tools, documents, and how they are rendered."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from batchmill.engine.contract import chat as contract
from batchmill.engine.contract import limits
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.grammar import check_parameters
from batchmill.engine.contract.reasoning import Effort, check_effort

from .field_checks import STRICT, Text, check_depth, optional, validation_error
from .media_parts import MediaPart
from .messages import FunctionName, Messages

#: Fields that have a use only in a chat.
_CHAT_ONLY: Final = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "documents",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
    "continue_final_message",
)


class Function(BaseModel):
    """A function that the model may call."""

    model_config = STRICT

    name: FunctionName
    """Name of the function."""

    description: Text | None = Field(default=None, repr=False)
    """What it does, for the model."""

    parameters: dict[str, Any] | None = Field(default=None, repr=False)
    """A JSON schema of type object; absent for a function without parameters."""

    strict: bool | None = None
    """Follow the schema. It holds only if a call is certain: see `tool_choice`."""

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        try:
            check_parameters("parameters", self.parameters or {})
        except ContractError as refusal:
            raise ValueError(refusal.message) from None
        return self


class Tool(BaseModel):
    """A tool; functions are the only kind."""

    model_config = STRICT

    type: Literal["function"]
    """Kind of the tool."""

    function: Function
    """The function that the model may call."""


class Document(BaseModel):
    """A document that the model answers from."""

    model_config = STRICT

    title: Text | None = Field(default=None, repr=False)
    """Title of the document."""

    text: Text = Field(repr=False)
    """Its text."""


def _check_tools(tools: list[Tool]) -> list[Tool]:
    for tool in tools:
        check_depth(tool.function.parameters, limits.MAX_STRUCTURE_DEPTH)
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ValueError("two functions have the same name: rename one")
    num_bytes = sum(_num_json_bytes(tool.model_dump()) for tool in tools)
    if num_bytes > limits.MAX_STRUCTURE_BYTES:
        raise ValueError(
            f"have {num_bytes} bytes as JSON, the limit is {limits.MAX_STRUCTURE_BYTES}; "
            "offer fewer, or describe them in fewer words"
        )
    return tools


class ChosenFunction(BaseModel):
    """The name of the function to call."""

    model_config = STRICT

    name: str
    """Name of the function."""


class FunctionChoice(BaseModel):
    """A function that must be called."""

    model_config = STRICT

    type: Literal["function"]
    """Kind of the tool."""

    function: ChosenFunction
    """The function that must be called."""


_ToolChoice = Literal["auto", "none", "required"] | FunctionChoice | None


def _read_tool_choice(choice: Any) -> Any:
    """Check a choice by hand: pydantic's error for a union would name all of its branches."""
    is_function = (
        isinstance(choice, dict)
        and choice.keys() == {"type", "function"}
        and choice["type"] == "function"
        and isinstance(choice["function"], dict)
        and choice["function"].keys() == {"name"}
        and isinstance(choice["function"]["name"], str)
    )
    if choice not in (None, "auto", "none", "required") and not is_function:
        raise ValueError(contract.TOOL_CHOICE_FORMS)
    return choice


def _check_template_kwargs(kwargs: Any) -> Any:
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        return kwargs  # pydantic refuses it
    for name, value in kwargs.items():
        if problem := contract.template_kwarg_problem(name, value):
            raise ValueError(problem)
    if _num_json_bytes(kwargs) > limits.MAX_TEMPLATE_KWARGS_BYTES:
        raise ValueError(f"has more than {limits.MAX_TEMPLATE_KWARGS_BYTES} bytes as JSON")
    return kwargs


def _num_json_bytes(value: Any) -> int:
    try:
        return len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError):
        raise ValueError("has a value that JSON in UTF-8 cannot hold: leave it out") from None


#: Variables of a chat template.
TemplateKwargs = Annotated[
    dict[str, Any],
    BeforeValidator(
        _check_template_kwargs,
        json_schema_input_type=dict[str, str | int | float | bool | None],
    ),
]


class ChatFields(BaseModel):
    """Messages and the fields that belong to them. docs/chat.md says what each does."""

    model_config = STRICT

    messages: Messages | None = Field(default=None, repr=False)
    """A chat, which the model's own template makes a prompt of. Give it instead of `prompt`."""

    tools: Annotated[
        list[Tool], Field(max_length=limits.MAX_TOOLS), AfterValidator(_check_tools)
    ] = optional([], repr=False)
    """Functions that the model may call. The model's template must know tools."""

    tool_choice: Annotated[
        str | dict[str, Any] | None,
        BeforeValidator(_read_tool_choice, json_schema_input_type=_ToolChoice),
    ] = optional(None)
    """`auto`, `required` (calls and nothing else, by their schemas), `none` (the tools are not
    shown), or one function by name. If it is missing and there are tools, `auto`."""

    parallel_tool_calls: bool | None = optional(None)
    """Whether the output may have several calls; false ends it after the first."""

    documents: Annotated[list[Document], Field(max_length=limits.MAX_DOCUMENTS)] = optional(
        [], repr=False
    )
    """Documents to answer from. The model's template must know documents."""

    chat_template_kwargs: TemplateKwargs = optional({})
    """Further variables of the model's template, such as `enable_thinking`."""

    reasoning_effort: Effort | None = optional(None)
    """How much the model thinks before it answers: what its template makes of it, and else a budget
    of tokens for its thoughts. If it is missing, that is up to the model."""

    add_generation_prompt: bool | None = optional(None)
    """Whether the prompt ends with the beginning of an assistant message; by default, unless
    the last message is continued."""

    continue_final_message: bool = optional(False)
    """Continue the last message, which must be the assistant's."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if value is not None or name not in _CHAT_ONLY
        }

    @property
    def media(self) -> list[MediaPart]:
        """Its pictures and sounds, in order."""
        return [part for message in self.messages or () for part in message.media]

    @property
    def must_call(self) -> bool:
        """Whether the output must be calls and nothing else."""
        return contract.is_call_demanded(self.tool_choice)

    @property
    def num_chat_bytes(self) -> int:
        """Approximate size of the prompt: messages, documents and tools."""
        num_bytes = sum(message.num_bytes for message in self.messages or ())
        num_bytes += sum(len(document.text.encode()) for document in self.documents)
        return num_bytes + sum(len(tool.model_dump_json()) for tool in self.tools)

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.messages is None:
            for name in _CHAT_ONLY:
                if getattr(self, name):
                    raise ValueError(f"{name} needs a chat: give messages instead of a prompt")
        self._check_tool_choice()
        self._check_continuation()
        check_effort(self.reasoning_effort, self.chat_template_kwargs)
        return self

    def _check_tool_choice(self) -> None:
        functions = [tool.function.model_dump(exclude_none=True) for tool in self.tools]
        try:
            contract.check_tool_choice(self.tool_choice, functions)
        except ContractError as refusal:
            raise validation_error(refusal, "tools") from None

    def _check_continuation(self) -> None:
        if not self.continue_final_message:
            return
        last = self.messages[-1] if self.messages else None
        contract.check_continuation(
            ends_with_assistant_text=last is not None
            and last.role == "assistant"
            and bool(last.content)
            and not last.tool_calls,
            add_generation_prompt=bool(self.add_generation_prompt),
        )
