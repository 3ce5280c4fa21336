"""Intake of pooled requests: texts to embed or score become requests, or are refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.media.agreement import check_agreement
from batchmill.engine.request.adapter import Adapter
from batchmill.engine.request.pooling import PooledStates, PoolingParams
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.steering import Steering
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.text.chat import Chat

from .intake import check_arguments
from .output_tracker import PooledTracker

#: The only token of a pooled request stands for its vector.
_ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)


class TextPair(NamedTuple):
    """A query and a document that are scored together."""

    query: str
    document: str


#: A text, its token ids, a conversation for the model's chat template, or a pair.
PooledPrompt = str | Sequence[int] | Chat | TextPair


class PoolingSupport(NamedTuple):
    """What a model offers to pooled requests."""

    #: What it computes, of "generate", "embed" and "score".
    tasks: tuple[str, ...]
    #: Numbers of an embedding; 0 without "embed".
    size: int
    #: Names of the outputs of its classification head; none without "score".
    labels: tuple[str, ...]


class PooledIntake:
    """Checks pooled requests against the model, and prepares them."""

    def __init__(self, config: EngineConfig, loaded: LoadedModel, scheduler: Scheduler) -> None:
        self._loaded = loaded
        self._is_encoder = not loaded.config.keeps_kv
        #: Most tokens of one input.
        self.limit = config.max_model_len
        if self._is_encoder:
            self.limit = min(self.limit, loaded.config.max_position_embeddings)
        self._scheduler = scheduler
        # Only the name, because errors go to whoever sent the job.
        self._model_name = Path(config.model).name

    @property
    def support(self) -> PoolingSupport:
        """What the model offers."""
        head = self._loaded.score_head
        labels = () if head is None else head.labels
        return PoolingSupport(self._tasks, self._loaded.config.state_size, labels)

    @property
    def _tasks(self) -> tuple[str, ...]:
        tasks: tuple[str, ...] = ("generate",) if self._loaded.config.generates else ()
        tasks += ("embed",) if self._loaded.config.state_size else ()
        return tasks + (("score",) if self._loaded.score_head is not None else ())

    def prepare(
        self,
        request_id: str,
        prompt: PooledPrompt,
        params: PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: Adapter | None = None,
        steering: Steering | None = None,
    ) -> PooledTracker:
        """Check a request.

        Raises:
            RequestError: `context_length_exceeded`, `unsupported_parameter` or `invalid_request`.
        """
        check_arguments(request_id, params, PoolingParams, priority, cache_salt)
        check_agreement(prompt, (), (), self._model_name)
        params, pooling = self._with_defaults(params)
        token_ids, type_ids = self._tokens(prompt, params)
        request = Request(
            request_id,
            token_ids,
            _ONE_TOKEN,
            seed=0,
            max_num_tokens=len(token_ids) + 1,
            cache_salt=cache_salt,
            adapter=adapter,
            steering=steering,
            pooling=PooledStates(
                params,
                len(token_ids),
                pooling=pooling,
                is_whole=self._is_encoder,
                type_ids=type_ids,
            ),
        )
        request.priority = priority
        self._scheduler.check_fits(request)
        return PooledTracker(request)

    def _with_defaults(self, params: PoolingParams) -> tuple[PoolingParams, str]:
        """Return params and the states that count, after a check against the model."""
        if params.task not in self._tasks:
            raise RequestError("unsupported_parameter", self._lacks(params.task))
        if params.task == "score":
            return params, "cls" if self._is_encoder else "last"
        pooling = params.pooling or self._loaded.pooling.pooling
        if pooling == "cls" and not self._is_encoder:
            raise RequestError(
                "unsupported_parameter",
                "pooling is 'cls', which is for encoders: in a decoder the first token sees no "
                "other, so use 'last' or 'mean'",
            )
        size = self._loaded.config.state_size
        if params.dimensions is not None and params.dimensions > size:
            raise RequestError(
                "invalid_request",
                f"dimensions is {params.dimensions}, and vectors of {self._model_name} have "
                f"{size}: use at most {size}",
            )
        normalize = True if params.normalize is None else params.normalize
        return replace(params, normalize=normalize), pooling

    def _lacks(self, task: str) -> str:
        if task == "score":
            return (
                f"{self._model_name} has no classification head, which scores need: use a "
                "…ForSequenceClassification model, or compare embeddings"
            )
        return (
            f"the states of {self._model_name} cannot be pooled, because transformers computes it "
            "in a way that does not show them: use a model of the native decoder"
        )

    def _tokens(
        self, prompt: PooledPrompt, params: PoolingParams
    ) -> tuple[list[int], Sequence[int] | None]:
        """Return the tokens of a prompt, and the text of a pair that each belongs to."""
        tokenizer, limit, truncate = self._loaded.tokenizer, self.limit, params.truncate
        type_ids = None
        if isinstance(prompt, TextPair):
            if params.task != "score":
                raise RequestError(
                    "invalid_request", "a pair is scored, not embedded: embed a text"
                )
            found = tokenizer.encode_pooled(*prompt, max_num_tokens=limit, truncate=truncate)
            token_ids, type_ids = found.ids, found.type_ids
        elif isinstance(prompt, str):
            found = tokenizer.encode_pooled(prompt, max_num_tokens=limit, truncate=truncate)
            token_ids = found.ids
        elif isinstance(prompt, Chat):
            token_ids = tokenizer.apply_chat_template(prompt, model_name=self._model_name)
        else:
            token_ids = check_token_ids(prompt)
        size = self._loaded.config.vocab_size
        return fit_token_ids(token_ids, limit, truncate, vocab_size=size), type_ids


def check_token_ids(token_ids: object) -> list[int]:
    """Return an input given as token ids, as a list.

    Raises:
        RequestError: `invalid_request`.
    """
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, bytes | bytearray):
        raise RequestError(
            "invalid_request",
            f"an input is a {type(token_ids).__name__}: use a text or a list of token ids",
        )
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in token_ids):
        raise RequestError("invalid_request", "an input must be a text or a list of token ids")
    return list(token_ids)


def fit_token_ids(
    token_ids: list[int], limit: int, truncate: str | None, *, vocab_size: int
) -> list[int]:
    """Return token ids that the model can compute.

    Raises:
        RequestError: `context_length_exceeded` or `invalid_request`.
    """
    if not token_ids:
        raise RequestError("invalid_request", "an input has 0 tokens: it needs at least 1")
    if len(token_ids) > limit:
        if truncate is None:
            raise RequestError(
                "context_length_exceeded",
                f"an input has {len(token_ids)} tokens, the model takes {limit}: shorten it, or "
                "set truncate to 'end' or 'start'",
            )
        token_ids = token_ids[-limit:] if truncate == "start" else token_ids[:limit]
    smallest, largest = min(token_ids), max(token_ids)
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise RequestError(
            "invalid_request",
            f"an input has the token id {wrong}: this model has ids from 0 to {vocab_size - 1}",
        )
    return token_ids
