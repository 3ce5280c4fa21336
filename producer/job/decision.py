"""Decisions: a job that answers questions about a state with a probability for every option."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from batchmill.engine.contract import decision as contract
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.kinds import Kind

from .chat import TemplateKwargs
from .field_checks import STRICT, Text, check_depth, check_utf8, optional, validation_error
from .kinds import KindSection
from .media_parts import MediaPart
from .messages import read_content

#: Of an answer's frame in the result, and of each option's name and probability.
_ANSWER_BYTES = 256
_OPTION_BYTES = 40
_TOKEN_BYTES = 16


def _check_content(content: Any) -> Any:
    if content is None or isinstance(content, int | float):
        raise ValueError("must be text, or JSON that is an object or a list")
    check_depth(content, contract.MAX_CONTENT_DEPTH)
    check_utf8(_json_text(content))
    return content


def _json_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be JSON: {error}") from None


def _check_description(content: Any) -> Any:
    return content if content is None else _check_content(content)


#: Text, or JSON that the model reads as its JSON text.
Content = Annotated[
    Any,
    BeforeValidator(_check_content, json_schema_input_type=str | dict[str, Any] | list[Any]),
]


def _check_criteria(criteria: Any) -> Any:
    """Check criteria by hand: pydantic's error for a union would name both of its branches."""
    if isinstance(criteria, dict):
        for name, description in criteria.items():
            check_utf8(str(name))
            if description is not None:
                _check_content(description)
    elif isinstance(criteria, list):
        for level in criteria:
            _check_content(level)
    return criteria  # the rest depends on the type of the question


def _read_state(state: Any) -> tuple[Any, list[MediaPart]]:
    """Return a state with the parts of its messages in the normal form, and its media."""
    messages = contract.messages_of(state)
    if messages is None:
        return state, []
    contents = [_read_content(message["content"], index) for index, message in enumerate(messages)]
    parts = (part for content in contents if isinstance(content, list) for part in content)
    read = [
        {
            **message,
            "content": content
            if isinstance(content, str)
            else [part.model_dump() for part in content],
        }
        for message, content in zip(messages, contents, strict=True)
    ]
    return read, [part for part in parts if isinstance(part, MediaPart)]


def _read_content(content: Any, index: int) -> Any:
    try:
        return read_content(content)
    except ValueError as refusal:
        raise ValueError(f"message {index} of the state: {refusal}") from None


_JSON = str | dict[str, Any] | list[Any]
_QuestionId = Annotated[
    str,
    Field(min_length=1, max_length=contract.MAX_QUESTION_ID_CHARS),
    AfterValidator(check_utf8),
]


class Question(BaseModel):
    """One question about the state of a decision."""

    model_config = STRICT

    type: contract.QuestionType
    """`choice` of one option, `score` on a scale of levels, or `yes_no`."""

    instructions: Content | None = optional(None, repr=False)
    """The question itself, such as "Is a refund requested?"."""

    criteria: Annotated[
        dict[str, Any] | list[Any] | None,
        BeforeValidator(
            _check_criteria, json_schema_input_type=dict[str, _JSON | None] | list[_JSON] | None
        ),
    ] = optional(None, repr=False)
    """Of a choice, option names with their descriptions or null; of a score, its levels, lowest
    first; of a yes_no, descriptions of `yes` and `no`."""

    @property
    def num_options(self) -> int:
        """Options that get a probability."""
        return 2 if self.type == "yes_no" else len(self.criteria or ())


def answer_bytes(question: Question) -> int:
    """Return the bytes that the answer to a question takes in a result, about."""
    names = len(question.model_dump_json()) if question.type == "choice" else 0
    return _ANSWER_BYTES + question.num_options * _OPTION_BYTES + names


class Decision(KindSection):
    """Questions about one state. docs/deciding.md says how each is asked and answered."""

    model_config = STRICT
    kind: ClassVar[Kind] = Kind.DECIDE

    state: Content = Field(repr=False)
    """What the questions are about: text, messages (`role` and `content`, which may have pictures
    and sounds), a list of the parts of one message, or other JSON."""

    instructions: Text | None = optional(None, repr=False)
    """Context for all questions, as the system message."""

    questions: dict[_QuestionId, Question] = Field(
        min_length=1, max_length=contract.MAX_QUESTIONS, repr=False
    )
    """The questions by their ids, which name the answers."""

    rotations: int = optional(1, ge=1, le=contract.MAX_OPTIONS)
    """Ask each question this often, each time with the options in another order, and average the
    probabilities. At most as often as it has options."""

    prior_correction: bool = optional(False)
    """Divide the probabilities by those that the model gives without a state."""

    min_confidence: float | None = optional(None, ge=0, le=1)
    """Confidence below which `on_low_confidence` counts."""

    on_low_confidence: contract.LowConfidence = optional("flag")
    """`flag` marks such an answer, `fail` fails the job, and `generate` adds text that the model
    writes in answer to the question."""

    max_tokens: int = optional(
        contract.DEFAULT_GENERATED_TOKENS, ge=1, le=contract.MAX_GENERATED_TOKENS
    )
    """Most tokens of that text."""

    chat_template_kwargs: TemplateKwargs = optional({})
    """Further variables of the model's template. `enable_thinking` is false unless it is given."""

    _media: list[MediaPart] = PrivateAttr(default_factory=list)

    @model_validator(mode="wrap")
    @classmethod
    def _read_spellings(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        try:
            read = contract.read_spellings(
                {name: value for name, value in data.items() if value is not None}
            )
        except ContractError as refusal:
            raise ValueError(refusal.message) from None
        media: list[MediaPart] = []
        if "state" in read:
            read["state"], media = _read_state(read["state"])
        decision = handler(read)
        decision._media = media
        return decision

    @model_validator(mode="after")
    def _check_state(self) -> Self:
        try:
            contract.check_state(self.state)
        except ContractError as refusal:
            raise validation_error(refusal, "decision") from None
        return self

    @model_validator(mode="after")
    def _check_questions(self) -> Self:
        for name, question in self.questions.items():
            try:
                contract.check_question(name, question.type, question.criteria)
            except ContractError as refusal:
                raise ValueError(refusal.message) from None
        if self.min_confidence is None and self.on_low_confidence != "flag":
            raise ValueError(
                "on_low_confidence has no effect without min_confidence; give that as well"
            )
        return self

    @property
    def media(self) -> list[MediaPart]:
        """The pictures and sounds of the state, in order."""
        return self._media

    @property
    def num_input_bytes(self) -> int:
        """Bytes of the state once, and of each question as often as it is asked."""
        shared = len(contract.text_of(self.state).encode()) + len(
            (self.instructions or "").encode()
        )
        return shared + sum(
            self.num_prompts_of(each) * len(each.model_dump_json())
            for each in self.questions.values()
        )

    @property
    def num_output_tokens(self) -> int:
        """One token of each prompt, and the texts of `generate`."""
        num_tokens = sum(map(self.num_prompts_of, self.questions.values()))
        if self.on_low_confidence == "generate":
            num_tokens += self.max_tokens * len(self.questions)
        return num_tokens

    @property
    def num_result_bytes(self) -> int:
        """Bytes of the answers."""
        num_bytes = 0
        for name, question in self.questions.items():
            num_bytes += answer_bytes(question) + len(name.encode())
        return num_bytes + self.num_output_tokens * _TOKEN_BYTES

    def num_prompts_of(self, question: Question) -> int:
        """Return how many prompts one question takes."""
        num_rotations = min(self.rotations, question.num_options)
        return num_rotations * (2 if self.prior_correction else 1)


#: Fields of a decision, in every spelling.
DECISION_FIELDS = frozenset({*Decision.model_fields, "input"})


def decision_and_job_fields(
    fields: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a decision among given ones, and the other fields of its job."""
    decision = {name: value for name, value in fields.items() if name in DECISION_FIELDS}
    others = {name: value for name, value in fields.items() if name not in DECISION_FIELDS}
    return decision, others


def decision_without_state(given: Any) -> dict[str, Any]:
    """Return the fields of a decision whose state comes from elsewhere, in our own spelling.

    Args:
        given: The questions, or an object with `questions` and other fields of a decision.

    Raises:
        ValueError: It has no questions, or has a state.
    """
    is_whole = isinstance(given, dict) and isinstance(given.get("questions"), dict | list)
    try:
        decision = contract.read_spellings(given if is_whole else {"questions": given})
    except ContractError as refusal:
        raise ValueError(refusal.message) from None
    if "state" in decision:
        raise ValueError("there is a state: leave it out, because it comes from the input")
    if not isinstance(decision["questions"], dict) or not decision["questions"]:
        raise ValueError("there must be questions by their ids")
    return decision
