"""The sampling controls of a job, under vLLM's names, checked without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    model_validator,
)

from batchmill.engine.contract import limits
from batchmill.engine.contract.agreement import (
    check_guidance,
    check_lengths,
    check_structure_ends_output,
)
from batchmill.engine.contract.aliases import names_of, read_other_forms
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.grammar import grammar_of
from batchmill.engine.contract.watermark import WATERMARK_NAME_PATTERN, check_watermark

from .field_checks import STRICT, check_depth, check_utf8, optional, validation_error
from .prompt import PromptInput, TokenId, check_prompt

#: A token id as a key of a JSON object.
_TOKEN_ID = r"^(0|[1-9][0-9]{0,9})$"


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _no_top_k(top_k: Any) -> Any:
    return 0 if type(top_k) is int and top_k == -1 else top_k


def _check_temperature(temperature: float) -> float:
    if 0 < temperature < limits.MIN_TEMPERATURE:
        raise ValueError(
            f"is {temperature:g}: use 0 (greedy), or {limits.MIN_TEMPERATURE:g} to "
            f"{limits.MAX_TEMPERATURE:g}"
        )
    return temperature


def _token_id(key: Any) -> int:
    if type(key) is int or (isinstance(key, str) and re.fullmatch(_TOKEN_ID, key)):
        return int(key)
    raise ValueError


def _logit_bias(given: Any) -> Any:
    """Return a logit bias with its token ids, which are strings in JSON, as numbers."""
    if not isinstance(given, Mapping):
        return given
    try:
        biases = {_token_id(token_id): bias for token_id, bias in given.items()}
    except ValueError:
        raise ValueError("has a key that is not a token id") from None
    if len(biases) != len(given):
        raise ValueError("names a token twice")
    return biases


def _bad_words(given: Any) -> Any:
    """Check bad words by hand: pydantic's error for a union would name both of its branches."""
    if not isinstance(given, list):
        raise ValueError("must be a list")
    if len(given) > limits.MAX_BAD_WORDS:
        return given  # refused by its length
    for word in given:
        if isinstance(word, str):
            if not word.strip() or len(check_utf8(word)) > limits.MAX_STOP_CHARS:
                raise ValueError(
                    f"has a text that is empty or longer than {limits.MAX_STOP_CHARS} characters"
                )
        elif (
            not isinstance(word, list)
            or not 0 < len(word) <= limits.MAX_STOP_CHARS
            or not all(type(token_id) is int and 0 <= token_id < 2**32 for token_id in word)
        ):
            raise ValueError("has an entry that is neither a text nor a list of token ids")
    return given


def _structure(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def check(given: dict[str, Any]) -> dict[str, Any]:
        try:
            num_bytes = len(json.dumps(given, allow_nan=False))
            check_utf8(json.dumps(given, ensure_ascii=False))
            if num_bytes > limits.MAX_STRUCTURE_BYTES:
                raise ValueError(
                    f"has {num_bytes} bytes as JSON, the limit is {limits.MAX_STRUCTURE_BYTES}; "
                    "shorten it"
                )
            check_depth(given, limits.MAX_STRUCTURE_DEPTH)
            if field == "response_format":
                grammar_of(given, None)
            else:
                grammar_of(None, given)
        except ContractError as refusal:
            raise validation_error(refusal, field) from None
        except (TypeError, RecursionError):
            raise ValueError("must be a JSON value") from None
        return given

    return check


StopString = Annotated[
    str, Field(min_length=1, max_length=limits.MAX_STOP_CHARS), AfterValidator(check_utf8)
]


_StopStrings = Annotated[list[StopString], Field(max_length=limits.MAX_STOP_STRINGS)]
_StopTokenIds = Annotated[list[TokenId], Field(max_length=limits.MAX_STOP_TOKEN_IDS)]
_Bias = Annotated[float, Field(ge=-limits.MAX_LOGIT_BIAS, le=limits.MAX_LOGIT_BIAS)]
_LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=_TOKEN_ID)], _Bias],
    Field(max_length=limits.MAX_LOGIT_BIASES, json_schema_extra={"additionalProperties": False}),
]
_BadWord = (
    Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_CHARS, pattern=r"\S")]
    | Annotated[list[TokenId], Field(min_length=1, max_length=limits.MAX_STOP_CHARS)]
)


class SamplingControls(BaseModel):
    """The controls of generation. docs/features.md says what each value does."""

    model_config = STRICT

    max_tokens: int = Field(
        default=256,
        ge=0,
        lt=2**31,
        validation_alias=AliasChoices(*names_of("max_tokens")),
    )
    """Most tokens to generate per sample. With 0 the prompt is only scored (`prompt_logprobs`)
    or echoed."""

    temperature: (
        Annotated[float, Field(ge=0, le=limits.MAX_TEMPERATURE), AfterValidator(_check_temperature)]
        | None
    ) = optional(None)
    """0 takes the likeliest token (greedy); 1 samples the model's own distribution. If it is
    missing, what the model's `generation_config.json` recommends, else 1."""

    top_p: float | None = optional(None, gt=0, le=1)
    """Keep the likeliest tokens that together reach this probability; 1 keeps all. If it is
    missing, what the model recommends, else 1."""

    top_k: (
        Annotated[
            int,
            Field(ge=0, lt=2**31),
            BeforeValidator(
                _no_top_k, json_schema_input_type=Annotated[int, Field(ge=-1, lt=2**31)]
            ),
        ]
        | None
    ) = optional(None)
    """Keep this many of the likeliest tokens; 0 (or -1) keeps all. If it is missing, what the
    model recommends, else 0."""

    seed: int | None = Field(default=None, ge=limits.MIN_SEED, lt=limits.MAX_SEED + 1)
    """Fixes the samples. If it is missing, submit picks one, so that a job that has to start
    again continues with the same samples."""

    stop: Annotated[
        _StopStrings,
        BeforeValidator(_one_or_many, json_schema_input_type=_StopStrings | StopString),
    ] = Field(
        default_factory=list,
        validation_alias=AliasChoices(*names_of("stop")),
    )
    """Strings that end the output. Its text ends before the first of them."""

    stop_token_ids: Annotated[
        _StopTokenIds,
        BeforeValidator(_one_or_many, json_schema_input_type=_StopTokenIds | TokenId),
    ] = Field(default_factory=list, validation_alias=AliasChoices(*names_of("stop_token_ids")))
    """Tokens that end generation, besides the model's own end-of-text tokens."""

    ignore_eos: bool = False
    """Go on after an end-of-text token, up to `max_tokens`; meant for benchmarks."""

    include_stop_str_in_output: bool = False
    """Keep the stop string, or the stop token, that ended the output in the text."""

    skip_special_tokens: bool = True
    """Leave special tokens, such as the end-of-text token, out of the text."""

    watermark: (
        Annotated[str, Field(json_schema_extra={"pattern": WATERMARK_NAME_PATTERN})] | None
    ) = optional(None)
    """Name of the operator's key that marks the output as generated: the noise of sampling comes
    from it. Refused at temperature 0, which has no noise. If it is missing, the operator's
    default."""

    guidance_scale: float = optional(
        1.0, ge=limits.MIN_GUIDANCE_SCALE, le=limits.MAX_GUIDANCE_SCALE
    )
    """Classifier-free guidance: how far the distribution moves away from the one after the
    negative prompt. 1 is off; it takes a second request's memory and time."""

    negative_prompt: (
        Annotated[
            str | list[int],
            BeforeValidator(check_prompt, json_schema_input_type=PromptInput),
        ]
        | None
    ) = optional(None, repr=False)
    """What the output should be unlike: text, or token ids. In a chat, a text is a message of the
    user. If it is missing, the prompt's last token, as in transformers."""

    n: int = optional(1, ge=1, le=limits.MAX_N, validation_alias=AliasChoices(*names_of("n")))
    """Number of samples, each with a seed of its own; see `JobResult.completions`."""

    min_p: float | None = optional(None, ge=0, le=1)
    """Keep tokens with at least this share of the likeliest token's probability; 0 keeps all. If
    it is missing, what the model recommends, else 0."""

    typical_p: float = optional(1.0, gt=0, le=1)
    """Keep the tokens whose surprise is nearest to its mean, up to this total probability; 1
    keeps all."""

    presence_penalty: float = optional(0.0, ge=-limits.MAX_PENALTY, le=limits.MAX_PENALTY)
    """Subtracted from the logit of each token that the output already contains; a negative
    number favours them."""

    frequency_penalty: float = optional(0.0, ge=-limits.MAX_PENALTY, le=limits.MAX_PENALTY)
    """Subtracted from a token's logit once per time that the output already contains it."""

    repetition_penalty: float | None = optional(
        None, ge=limits.MIN_REPETITION_PENALTY, le=limits.MAX_REPETITION_PENALTY
    )
    """Makes the tokens of prompt and output less likely (above 1) or likelier (below 1). If it is
    missing, what the model recommends, else 1."""

    no_repeat_ngram_size: int = optional(0, ge=0, lt=2**31)
    """No run of this many tokens occurs twice in prompt and output; 0 is off."""

    logit_bias: Annotated[
        Annotated[dict[TokenId, _Bias], Field(max_length=limits.MAX_LOGIT_BIASES)],
        BeforeValidator(_logit_bias, json_schema_input_type=_LogitBias),
    ] = optional({})
    """Added to the logits of tokens: token ids, and numbers from -100 to 100."""

    bad_words: Annotated[
        Annotated[list[str | list[int]], Field(max_length=limits.MAX_BAD_WORDS)],
        BeforeValidator(
            _bad_words,
            json_schema_input_type=Annotated[
                list[_BadWord], Field(max_length=limits.MAX_BAD_WORDS)
            ],
        ),
    ] = optional(
        [],
        validation_alias=AliasChoices(*names_of("bad_words")),
        repr=False,
    )
    """Texts or lists of token ids that must not occur in prompt and output."""

    allowed_token_ids: list[TokenId] | None = optional(
        None, min_length=1, max_length=limits.MAX_ALLOWED_TOKEN_IDS
    )
    """The only tokens that may be generated."""

    min_tokens: int = optional(
        0, ge=0, lt=2**31, validation_alias=AliasChoices(*names_of("min_tokens"))
    )
    """Tokens to generate before an end-of-text token, a stop token or a stop string can end it."""

    thinking_token_budget: int | None = optional(
        None,
        ge=0,
        lt=2**31,
        validation_alias=AliasChoices(*names_of("thinking_token_budget")),
    )
    """Most tokens of a chat's thoughts, without their markup: a thought that is longer is ended,
    and the answer follows. If it is missing, what `reasoning_effort` says, else no limit."""

    logprobs: int | None = optional(None, ge=0, le=limits.MAX_LOGPROBS)
    """Report the log probability of each output token, and of this many likeliest ones in its
    place. OpenAI's `true`, with `top_logprobs`, is accepted."""

    logprob_token_ids: list[TokenId] | None = optional(
        None, min_length=1, max_length=limits.MAX_LOGPROB_TOKEN_IDS
    )
    """Report the log probabilities of these tokens as well, at the place of each output token,
    however unlikely they are."""

    prompt_logprobs: int | None = optional(None, ge=0, le=limits.MAX_LOGPROBS)
    """Report the log probability of each token of the prompt, and of this many likeliest ones
    in its place."""

    entropy: bool = optional(False)
    """Report the entropy of each step's own distribution, in nats."""

    echo: bool = optional(False)
    """Begin the text with the prompt's. With `logprobs`, the prompt's tokens are scored as well."""

    truncate_prompt_tokens: int | None = optional(
        None, ge=-1, lt=2**31, json_schema_extra={"not": {"const": 0}}
    )
    """Keep only this many of the prompt's last tokens; -1 keeps as many as leave room."""

    response_format: Annotated[
        dict[str, Any] | None, AfterValidator(lambda v: v and _structure("response_format")(v))
    ] = optional(None, repr=False)
    """Structure that the output follows, in OpenAI's form: `text`, `json_object` or
    `json_schema`."""

    structured_outputs: Annotated[
        dict[str, Any] | None, AfterValidator(lambda v: v and _structure("structured_outputs")(v))
    ] = optional(None, repr=False)
    """Structure that the output follows, in vLLM's form: one of `json`, `json_object`, `regex`,
    `choice` and `grammar` (Lark)."""

    @model_validator(mode="before")
    @classmethod
    def _read_other_forms(cls, data: Any) -> Any:
        """Read null as a default, and `do_sample` and OpenAI's `logprobs` as our controls."""
        if not isinstance(data, dict):
            return data
        data = {
            name: value
            for name, value in data.items()
            if value is not None or name not in _control_names()
        }
        return read_other_forms(data)

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        check_lengths(self)
        check_guidance(self.guidance_scale, has_negative_prompt=self.negative_prompt is not None)
        if self.watermark is not None:
            check_watermark(self.watermark, self.temperature)
        if self.is_structured:
            check_structure_ends_output(self)
        return self

    @property
    def is_structured(self) -> bool:
        """Whether a structured output is demanded.

        Raises:
            ContractError: it is given in both forms.
        """
        return grammar_of(self.response_format, self.structured_outputs) is not None


@cache
def _control_names() -> frozenset[str]:
    """Return every name of every control, here and in other APIs."""
    names = set(SamplingControls.model_fields)
    for field in SamplingControls.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {str(choice) for choice in field.validation_alias.choices}
    return frozenset(names)
