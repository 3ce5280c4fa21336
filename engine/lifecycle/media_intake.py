"""Intake of media: a chat and its pictures or sounds become tokens, and rows for their features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from batchmill.engine.config import EngineConfig
from batchmill.engine.contract.media import Media
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.media.agreement import check_agreement
from batchmill.engine.media.model import MediaModel
from batchmill.engine.request.media import MediaItem, PromptMedia, positions_of, salted_item
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.control_tokens import RenderedChat


class ExpandedPrompt(NamedTuple):
    """A prompt in which each row of features has a placeholder."""

    token_ids: list[int]
    media: PromptMedia


class MediaIntake:
    """Checks the media of requests, and expands their placeholders."""

    def __init__(self, config: EngineConfig, loaded: LoadedModel) -> None:
        self._tokenizer = loaded.tokenizer
        self._model = loaded.media
        self._max_model_len = config.max_model_len
        # Only the name, because errors go to whoever sent the job.
        self._model_name = Path(config.model).name

    def expand(
        self,
        prompt: object,
        media: Sequence[Media],
        params: SamplingParams,
        cache_salt: str | None = None,
    ) -> ExpandedPrompt | None:
        """Return the tokens of a chat with media; None for a prompt without.

        Features are shared only by requests of the same salt.

        Raises:
            RequestError: the media do not suit the prompt or the model, or are too long.
        """
        taken = () if self._model is None else (self._model.kind,)
        check_agreement(prompt, media, taken, self._model_name)
        if not media or self._model is None:
            return None
        assert isinstance(prompt, Chat), "only chats have placeholders"
        if params.truncate_prompt_tokens is not None:
            raise RequestError(
                "unsupported_parameter",
                "truncate_prompt_tokens would cut pictures or sounds in pieces: leave it out",
            )
        items = [salted_item(self._model.item_of(each), cache_salt) for each in media]
        self._check_length(items)
        expanded = self._expanded(prompt, items, self._model)
        most = self._max_model_len - 1
        token_ids = self._tokenizer.encode_rendered(expanded, max_num_tokens=most)
        return ExpandedPrompt(token_ids, self._prompt_media(token_ids, items, self._model))

    def _check_length(self, items: Sequence[MediaItem]) -> None:
        num_rows = sum(item.num_features for item in items)
        if num_rows >= self._max_model_len:
            raise RequestError(
                "context_length_exceeded",
                f"the media have {num_rows} tokens, max_model_len is {self._max_model_len}: send "
                "fewer or smaller ones, or raise max_model_len",
            )

    def _expanded(self, chat: Chat, items: Sequence[MediaItem], model: MediaModel) -> RenderedChat:
        rendered = self._tokenizer.render_chat(chat, model_name=self._model_name)
        parts = rendered.text.split(model.placeholder)
        if len(parts) <= len(items):
            raise RequestError(
                "unsupported_parameter",
                f"the chat template of {self._model_name} shows {len(parts) - 1} of the "
                f"{len(items)} media: leave the others out, or use a model whose template knows "
                "them",
            )
        if len(parts) > len(items) + 1:
            raise self._spelled_out(model)
        texts = map(model.text_of, items)
        expanded = "".join(chain.from_iterable(zip_longest(parts, texts, fillvalue="")))
        return rendered._replace(text=expanded)

    def _prompt_media(
        self, token_ids: Sequence[int], items: Sequence[MediaItem], model: MediaModel
    ) -> PromptMedia:
        placeholder = self._tokenizer.token_id(model.placeholder)
        positions = positions_of(placeholder, token_ids)
        if len(positions) != sum(item.num_features for item in items):
            raise self._spelled_out(model)
        grids = model.rope_positions(items, positions, len(token_ids))
        return PromptMedia(items, positions, grids)

    def _spelled_out(self, model: MediaModel) -> RequestError:
        return RequestError(
            "invalid_request",
            f"messages spell out {model.placeholder}, which stands for pictures or sounds in this "
            "model's prompts: leave it out",
        )
