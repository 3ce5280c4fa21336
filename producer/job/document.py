"""The job's document, checked: the wire contract between producers and workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from batchmill.engine.contract import explain as explanation
from batchmill.engine.contract.agreement import check_tools_suit
from batchmill.engine.contract.beam_search import BEAM_SEARCH
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.kinds import SECTIONS, Kind
from batchmill.engine.contract.limits import (
    MAX_CACHE_SALT_CHARS,
    MAX_MEDIA,
    MAX_PROMPT_BYTES,
)
from batchmill.engine.contract.media import MEDIA_SECTIONS
from batchmill.engine.contract.reasoning import check_budget
from batchmill.engine.contract.selection import SELECT
from batchmill.engine.contract.unsupported import UNSUPPORTED_FIELDS
from batchmill.producer.tracing.traceparent import read_traceparent

from . import limits
from .beam_search import BeamSearch
from .chat import ChatFields
from .controls import SamplingControls
from .decision import Decision
from .field_checks import Text, check_num_parts, integral, optional, validation_error
from .field_types import (
    AdapterName,
    CorpusName,
    IdempotencyKey,
    Metadata,
    ModelName,
    Moment,
    SecretName,
    Tags,
    TenantName,
    WebhookUrl,
)
from .kinds import KindSection
from .media_parts import MediaPart
from .pooled import Embedding, Scoring
from .prompt import PromptInput, check_prompt
from .retry import RetryPolicy
from .selection import Selection
from .steering import Steering

#: Fields that have a use only in a job that generates.
_GENERATION_FIELDS = (*SamplingControls.model_fields, *ChatFields.model_fields, "draft_corpus")

EventName = Literal["started", "output", "completed", "failed", "cancelled", "expired"]
_END_EVENTS: tuple[EventName, ...] = ("completed", "failed", "cancelled", "expired")


class GenerationJob(ChatFields, SamplingControls):
    """A job: its input, its controls and its delivery. Unknown fields are errors.

    Exactly one of `prompt` and `messages` is given. Names are those of vLLM and OpenAI; aliases
    from other APIs are accepted. A parameter that other engines support and this version does not
    is refused by name, unless its value asks for nothing.

    Raises:
        pydantic.ValidationError: a field is wrong; `Client.submit` turns it into `JobRejected`.
    """

    model: ModelName | None = None
    """Name under which workers serve the model. If it is missing, that of the client's settings."""

    prompt: (
        Annotated[
            str | list[int], BeforeValidator(check_prompt, json_schema_input_type=PromptInput)
        ]
        | None
    ) = Field(default=None, repr=False)
    """Text, or token ids of the model's vocabulary. It is used as it is, without a chat
    template."""

    decision: Decision | None = optional(None, repr=False)
    """Questions about a state, answered with probabilities instead of text. Give it instead of
    `prompt` and `messages`; docs/deciding.md says how each question is asked."""

    embedding: Embedding | None = optional(None, repr=False)
    """Texts to embed: vectors instead of text. Give it instead of `prompt` and `messages`;
    docs/embeddings.md says how."""

    scoring: Scoring | None = optional(None, repr=False)
    """Texts to score, alone or against a query. Give it instead of `prompt` and `messages`;
    docs/embeddings.md says how."""

    lora: AdapterName | None = optional(None)
    """Name of a LoRA adapter of the model, which the operator has added. Submit resolves it to a
    version, so that all of the job is computed with the same weights."""

    steering: Steering | None = optional(None)
    """A steering vector of the model, which the operator has added, with its strength and layers:
    it is added to the hidden states of all tokens. Submit resolves its name to a version."""

    cache_salt: Annotated[Text, Field(min_length=1, max_length=MAX_CACHE_SALT_CHARS)] | None = (
        Field(default=None, repr=False, exclude_if=lambda salt: salt is None)
    )
    """Jobs share the KV of equal prompt prefixes only with jobs of the same salt, so that times
    tell nothing about others' prompts."""

    explain: Annotated[list[explanation.Part], Field(max_length=len(explanation.PARTS))] = optional(
        []
    )
    """What to explain about the output: `confidence` of each token, `alternatives` at the least
    certain places, `attribution` to the parts of the input, `uncertainty` over further samples."""

    explain_similarity: float | None = optional(None, ge=0, le=1)
    """Of `uncertainty`: cosine of two embeddings from which texts count as the same. If it is
    missing, they must be equal but for case, white space and punctuation at their ends."""

    priority: Literal["high", "normal", "low"] = "normal"
    """Which jobs of a model run first: all waiting `high` ones before `normal` ones, and these
    before `low` ones."""

    tenant: TenantName | None = None
    """Owner of the job. Within a priority, tenants take turns by the tokens they use and their
    weights. If it is missing, `default`."""

    webhook: WebhookUrl | None = None
    """URL that receives a signed POST when the job ends. https, unless the operator allows http."""

    webhook_events_filter: Annotated[list[EventName], Field(min_length=1, max_length=6)] = Field(
        default_factory=lambda: list(_END_EVENTS)
    )
    """Events to send: `started`, `output` (tokens so far, at most every five seconds) and the
    four ends. If it is missing, the ends."""

    include_output: bool = False
    """Put the text, or the answers of a decision, into the event of the job's end, if it has at
    most 16 KiB."""

    webhook_secret: SecretName | None = None
    """Name of the operator's secret that signs the webhook. If it is missing, the default
    secret."""

    idempotency_key: IdempotencyKey | None = None
    """Submitting again with the same key returns the same job, while its record is kept."""

    metadata: Metadata = Field(default_factory=dict)
    """Your own data about the job, as texts by name. Returned with its result and in its
    webhook."""

    tags: Tags = Field(default_factory=list)
    """Labels by which to find, count, cancel and forget jobs."""

    ttl_s: float | None = Field(default=None, gt=0, le=limits.MAX_TTL_S)
    """Seconds from submit after which the job expires."""

    deadline: Moment | None = None
    """Date and time with a time zone, or seconds of unix time, at which the job expires. If
    `ttl_s` is given too, the earlier of the two counts."""

    delay_s: float | None = Field(default=None, gt=0, le=limits.MAX_TTL_S)
    """Seconds from submit before which the job does not run."""

    not_before: Moment | None = None
    """Date and time with a time zone, or seconds of unix time, before which the job does not
    run. If `delay_s` is given too, the later of the two counts."""

    traceparent: Annotated[str | None, BeforeValidator(read_traceparent), WithJsonSchema({})] = (
        Field(default=None, exclude_if=lambda context: context is None)
    )
    """W3C trace context of the caller, which the job, its spans, its logs and its webhooks
    continue. An invalid one is ignored."""

    draft_corpus: CorpusName | None = optional(None)
    """Name of the job's template. It may take draft tokens from the outputs of finished jobs of the
    same tenant, model and name, and they from its own, which saves steps and changes no token.
    `off` forbids both. If it is missing, the operator's setting decides by the prompt's beginning.
    """

    select: Selection | None = optional(None)
    """Which of the `n` samples is selected, by their likelihood, by a vote, or by a question about
    each. All of them stay in the result."""

    beam_search: BeamSearch | None = optional(None)
    """Search for the likeliest outputs instead of sampling; the `n` best are returned."""

    retry: RetryPolicy | None = optional(None)
    """Which errors of an attempt lead to another attempt, how often, and after which waits.
    What it leaves out is the operator's default."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        check_num_parts(data, limits.MAX_PARTS)
        kept = {}
        for name, value in data.items():
            if value is None and name in cls.model_fields:
                continue  # null is what a missing field is
            unsupported = UNSUPPORTED_FIELDS.get(name)
            if unsupported is None:
                kept[name] = integral(value)
            elif not unsupported.is_neutral(value):
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "{message}",
                    {"message": unsupported.message(name), "param": name},
                )
        return kept

    @model_validator(mode="after")
    def _check_webhook_choices(self) -> Self:
        chosen = {
            "webhook_events_filter": set(self.webhook_events_filter) != set(_END_EVENTS),
            "include_output": self.include_output,
            "webhook_secret": self.webhook_secret is not None,
        }
        if self.webhook is None and any(chosen.values()):
            names = ", ".join(name for name, is_chosen in chosen.items() if is_chosen)
            raise ValueError(f"{names} has no effect without a webhook; give one")
        return self

    @model_validator(mode="after")
    def _check_deadline_after_delay(self) -> Self:
        if self.delay_s is None and self.not_before is None:
            return self
        # A duration and a date are compared at submit, by Redis' clock.
        for end_name, end, start_name, start in (
            ("ttl_s", self.ttl_s, "delay_s", self.delay_s),
            ("deadline", self.deadline, "not_before", self.not_before),
        ):
            if end is not None and start is not None and end <= start:  # type: ignore[operator]
                raise ValueError(
                    f"{end_name} is {end}, not after {start_name} ({start}): "
                    "the job would expire before it can run"
                )
        return self

    @model_validator(mode="after")
    def _check_selection_has_samples(self) -> Self:
        if self.select is not None and self.n == 1:
            raise ValueError("select has no effect with one sample; set n to 2 or more")
        return self

    @property
    def kind(self) -> Kind:
        """What the job asks a model for."""
        given = (kind for kind, name in SECTIONS.items() if getattr(self, name) is not None)
        return next(given, Kind.GENERATE)

    @property
    def section_name(self) -> str | None:
        """The field of `section`; None for a job that generates."""
        return SECTIONS.get(self.kind)

    @property
    def media(self) -> list[MediaPart]:
        """Its pictures and sounds, in order."""
        return super().media if self.section is None else self.section.media

    @property
    def plan(self) -> tuple[str | None, dict[str, Any]]:
        """The field that asks the engine for a plan, and its content; None for text alone."""
        if self.section is not None:
            return self.section_name, self.section.model_dump()
        if self.explain:
            fields = {"parts": list(self.explain), "similarity": self.explain_similarity}
            return explanation.EXPLAIN, fields
        if self.select is not None and self.select.question is not None:
            return SELECT, {"question": self.select.question.model_dump()}
        if self.beam_search is not None:
            return BEAM_SEARCH, self.beam_search.model_dump()
        return None, {}

    @property
    def section(self) -> KindSection | None:
        """The input and the parameters of a job of another kind than `generate`."""
        name = self.section_name
        section: KindSection | None = None if name is None else getattr(self, name)
        return section

    @model_validator(mode="after")
    def _check_fields_suit_kind(self) -> Self:
        kind = self.kind
        if kind is Kind.GENERATE:
            return self
        sections = (name for each, name in SECTIONS.items() if each is not kind)
        for name in ("prompt", *_GENERATION_FIELDS, *sections):
            field = type(self).model_fields[name]
            if getattr(self, name) != field.get_default(call_default_factory=True):
                raise ValueError(
                    f"{name} has no effect beside {SECTIONS[kind]}, which has its own input and "
                    "parameters; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _check_one_input(self) -> Self:
        if self.section is not None:
            num_bytes = self.section.num_input_bytes
            if num_bytes > MAX_PROMPT_BYTES:
                raise ValueError(
                    f"{SECTIONS[self.kind]} has {num_bytes} bytes, the limit is "
                    f"{MAX_PROMPT_BYTES}; shorten it"
                )
            return self
        if (self.prompt is None) == (self.messages is None):
            given = "neither is" if self.prompt is None else "both are"
            raise ValueError(f"give exactly one of prompt and messages; {given} given")
        if self.messages is not None:
            num_bytes = self.num_chat_bytes
            if num_bytes > MAX_PROMPT_BYTES:
                raise ValueError(
                    f"messages, documents and tools have {num_bytes} bytes, the limit is "
                    f"{MAX_PROMPT_BYTES}; shorten them"
                )
        return self

    @model_validator(mode="after")
    def _check_media(self) -> Self:
        media = self.media
        if len(media) > MAX_MEDIA:
            raise ValueError(
                f"there are {len(media)} pictures and sounds, the limit is {MAX_MEDIA}; send "
                "several jobs"
            )
        if not media:
            return self
        if "attribution" in self.explain:
            raise _refused_beside_media("explain", "the attribution of explain")
        section = self.plan[0]
        if section is not None and section not in MEDIA_SECTIONS:
            raise _refused_beside_media(section, section)
        return self

    @model_validator(mode="after")
    def _check_explain(self) -> Self:
        if self.explain and self.section is not None:
            raise ValueError("explain is for jobs that generate; leave it out")
        explanation.check_explained(self)
        return self

    @model_validator(mode="after")
    def _check_draft_corpus(self) -> Self:
        name = self.plan[0]
        if self.draft_corpus is not None and name is not None and self.section is None:
            raise ValueError(
                f"draft_corpus has no effect beside {name}, which is computed without draft "
                "tokens; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_beam_search(self) -> Self:
        if self.beam_search is not None:
            self.beam_search.check_suits(self)
        return self

    @model_validator(mode="after")
    def _check_controls_suit_chat(self) -> Self:
        check_budget(
            self.thinking_token_budget,
            is_chat=self.messages is not None,
            is_structured=self.is_structured,
            must_call=self.must_call,
        )
        if self.tools and self.tool_choice != "none":
            check_tools_suit(self, is_structured=self.is_structured, must_call=self.must_call)
        return self


def _refused_beside_media(field: str, what: str) -> ValueError:
    message = f"{what} is not supported for a chat with pictures or sounds: leave it out"
    return validation_error(ContractError(message, "unsupported_parameter"), field)
