"""How to generate: the controls of a job, under vLLM's names, checked without a model."""

from __future__ import annotations

import json
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
from pydantic_core import PydanticCustomError

from batchmill.producer.grammar import GrammarRefused, grammar_of

from . import limits
from .strictness import STRICT, check_depth, encoded

TokenId = Annotated[int, Field(ge=0, lt=2**32)]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _no_top_k(top_k: Any) -> Any:
    return 0 if type(top_k) is int and top_k == -1 else top_k


def _logit_bias(given: Any) -> Any:
    """Turn the token ids of a JSON object's keys, which are strings, into numbers."""
    if not isinstance(given, Mapping):
        return given
    try:
        biases = {int(token_id): bias for token_id, bias in given.items()}
    except (TypeError, ValueError):
        raise ValueError("has a key that is no token id") from None
    if len(biases) != len(given):
        raise ValueError("names a token twice")
    return biases


def _bad_words(given: Any) -> Any:
    """Check bad words by hand: errors of a union would name both of its kinds."""
    if not isinstance(given, list):
        raise ValueError("is no list of texts")
    for word in given:
        if isinstance(word, str):
            if not word.strip() or len(encoded(word)) > limits.MAX_STOP_CHARS:
                raise ValueError(
                    f"holds a text that is empty or longer than {limits.MAX_STOP_CHARS} characters"
                )
        elif (
            not isinstance(word, list)
            or not 0 < len(word) <= limits.MAX_STOP_CHARS
            or not all(type(token_id) is int and 0 <= token_id < 2**32 for token_id in word)
        ):
            raise ValueError("holds an entry that is neither a text nor a list of token ids")
    return given


def _structure(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def check(given: dict[str, Any]) -> dict[str, Any]:
        try:
            num_bytes = len(json.dumps(given))
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
        except GrammarRefused as refusal:
            if refusal.code != "unsupported_parameter":
                raise ValueError(refusal.message) from None
            context = {"message": refusal.message, "param": field}
            raise PydanticCustomError("unsupported_parameter", "{message}", context) from None
        except (TypeError, RecursionError):
            raise ValueError("is no JSON value") from None
        return given

    return check


StopString = Annotated[
    str, Field(min_length=1, max_length=limits.MAX_STOP_CHARS), AfterValidator(encoded)
]


def _control(default: Any, **constraints: Any) -> Any:
    """A field that a job's document leaves out where it is not used."""
    return Field(default=default, exclude_if=lambda value: value == default, **constraints)


class SamplingControls(BaseModel):
    """The part of a job that says how to generate. What a value does: docs/features.md."""

    model_config = STRICT

    #: Most tokens to generate. With 0 the prompt is only scored (`prompt_logprobs`) or echoed.
    max_tokens: int = Field(
        default=256,
        ge=0,
        lt=2**31,
        validation_alias=AliasChoices(
            "max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"
        ),
    )
    #: 0 takes the likeliest token (greedy); 1 samples the model's own distribution.
    temperature: float = Field(default=1.0, ge=0, le=100)
    #: Keep the likeliest tokens that together reach this probability; 1 keeps all.
    top_p: float = Field(default=1.0, gt=0, le=1)
    #: Keep that many of the likeliest tokens; 0 (or -1) keeps all.
    top_k: Annotated[int, BeforeValidator(_no_top_k), Field(ge=0, lt=2**31)] = 0
    #: Fixes the random draws. Drawn at submit where absent, so that a job that has to start again
    #: goes on with the same draws.
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    #: Strings that end generation. The text ends before the first of them.
    stop: Annotated[
        list[StopString], BeforeValidator(_one_or_many), Field(max_length=limits.MAX_STOP_STRINGS)
    ] = Field(
        default_factory=list,
        validation_alias=AliasChoices("stop", "stop_strings", "stop_sequences"),
    )
    #: Tokens that end generation, besides the model's own end-of-text tokens.
    stop_token_ids: Annotated[
        list[TokenId], BeforeValidator(_one_or_many), Field(max_length=limits.MAX_STOP_TOKEN_IDS)
    ] = Field(default_factory=list, validation_alias=AliasChoices("stop_token_ids", "eos_token_id"))
    #: Go on after an end-of-text token (for benchmarks).
    ignore_eos: bool = False
    #: Keep what ended generation in the text.
    include_stop_str_in_output: bool = False
    #: Leave special tokens out of the text.
    skip_special_tokens: bool = True

    #: Samples of the prompt, each with a seed of its own; see `JobResult.completions`.
    n: int = _control(
        1, ge=1, le=limits.MAX_N, validation_alias=AliasChoices("n", "num_return_sequences")
    )
    #: Keep tokens that are at least this share as probable as the likeliest; 0 keeps all.
    min_p: float = _control(0.0, ge=0, le=1)
    #: Keep the tokens whose surprise is nearest to what is expected, up to this probability.
    typical_p: float = _control(1.0, gt=0, le=1)
    #: Taken off the logit of each token that the output has.
    presence_penalty: float = _control(0.0, ge=-2, le=2)
    #: Taken off a token's logit for each time that the output has it.
    frequency_penalty: float = _control(0.0, ge=-2, le=2)
    #: Makes tokens that prompt or output have less likely (above 1) or likelier.
    repetition_penalty: float = _control(1.0, ge=0.01, le=100)
    #: No run of that many tokens comes twice in prompt and output; 0 is off.
    no_repeat_ngram_size: int = _control(0, ge=0, lt=2**31)
    #: Added to the logits of these tokens: token ids to -100 to 100.
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_logit_bias)
    ] = _control({}, max_length=limits.MAX_LOGIT_BIASES)
    #: Texts or lists of token ids that prompt and output together must not spell.
    bad_words: Annotated[list[str | list[int]], BeforeValidator(_bad_words)] = _control(
        [],
        max_length=limits.MAX_BAD_WORDS,
        validation_alias=AliasChoices("bad_words", "bad_words_ids"),
        repr=False,
    )
    #: The only tokens that may be generated.
    allowed_token_ids: list[TokenId] | None = _control(
        None, min_length=1, max_length=limits.MAX_ALLOWED_TOKEN_IDS
    )
    #: Tokens to generate before an end-of-text token, a stop token or a stop string may end it.
    min_tokens: int = _control(
        0, ge=0, validation_alias=AliasChoices("min_tokens", "min_new_tokens")
    )
    #: Report the log probability of each output token, and of that many likeliest ones. OpenAI's
    #: `true`, with `top_logprobs` beside it, is understood.
    logprobs: int | None = _control(None, ge=0, le=limits.MAX_LOGPROBS)
    #: The same for the tokens of the prompt.
    prompt_logprobs: int | None = _control(None, ge=0, le=limits.MAX_LOGPROBS)
    #: Report the entropy of each step's own distribution, in nats.
    entropy: bool = _control(False)
    #: Begin the text with the prompt's.
    echo: bool = _control(False)
    #: Keep only that many of the prompt's last tokens; -1 keeps as many as leave room.
    truncate_prompt_tokens: int | None = _control(None, ge=-1, lt=2**31)
    #: OpenAI's form of a structure to follow: `text`, `json_object` or `json_schema`.
    response_format: Annotated[
        dict[str, Any] | None, AfterValidator(lambda v: v and _structure("response_format")(v))
    ] = _control(None, repr=False)
    #: vLLM's form: one of `json`, `json_object`, `regex`, `choice` and `grammar` (Lark).
    structured_outputs: Annotated[
        dict[str, Any] | None, AfterValidator(lambda v: v and _structure("structured_outputs")(v))
    ] = _control(None, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _read_other_spellings(cls, data: Any) -> Any:
        """Null for a default, `do_sample`, and OpenAI's `logprobs` that is true or false."""
        if not isinstance(data, dict):
            return data
        data = {
            name: value
            for name, value in data.items()
            if value is not None or name not in _control_names()
        }
        do_sample = data.pop("do_sample", None)
        if do_sample is False:
            data["temperature"] = 0.0
        elif do_sample not in (None, True):
            raise ValueError("do_sample is neither true nor false")
        top, logprobs = data.pop("top_logprobs", None), data.get("logprobs")
        if logprobs is True:
            data["logprobs"] = 0 if top is None else top
        elif top not in (None, 0):
            raise ValueError("top_logprobs is given without logprobs: set logprobs to true")
        elif logprobs is False:
            del data["logprobs"]
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}: use at most max_tokens ({self.max_tokens})"
            )
        if self.max_tokens == 0 and self.prompt_logprobs is None and not self.echo:
            raise ValueError(
                "max_tokens is 0: ask for prompt_logprobs or echo beside it, or for at least 1 "
                "token"
            )
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens is 0: use 1 or more, or -1")
        if self.response_format is not None and self.structured_outputs is not None:
            raise ValueError("response_format and structured_outputs are both given: give one")
        if self.structured_outputs is None and (self.response_format or {}).get("type") in (
            None,
            "text",
        ):
            return self
        for name in ("stop", "stop_token_ids", "min_tokens", "ignore_eos"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} and a structured output are both given: the structure alone decides "
                    f"where the output ends, so leave {name} out"
                )
        return self


@cache
def _control_names() -> frozenset[str]:
    """Every name that a control has, here and in other APIs."""
    names = set(SamplingControls.model_fields)
    for field in SamplingControls.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {str(choice) for choice in field.validation_alias.choices}
    return frozenset(names)
