"""What the engine asks of a model's part for pictures and sounds; one subclass per architecture."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from batchmill.engine.contract.media import Media
from batchmill.engine.request.media import MediaItem, item_digest
from batchmill.engine.step.feature_rows import Features

from .tower import load_tower

if TYPE_CHECKING:  # every engine imports this file, and transformers' models take long to import
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class MediaSource:
    """What the part of a model for pictures or sounds is loaded from.

    Attributes:
        folder: The model's files.
        config: Its configuration.
        placeholder: Text of the token that stands for a row of features.
        dtype: Of its weights, and of the features.
        device: Of its weights.
    """

    folder: Path
    config: PreTrainedConfig
    placeholder: str
    dtype: torch.dtype
    device: torch.device


class MediaModel(ABC):
    """Turns media into items of a prompt, and items into features.

    Attributes:
        kind: Kind of media that it takes.
        settings: All that decides its features besides the weights, as JSON; a part of identities.
        placeholder: The token that stands in a prompt for a row of features, as text; the chat
            template writes one for each medium.
        hidden_size: Numbers of a row.
        num_deepstack: Layers whose output gets features added.
        sample_rate_hz: Rate of the sounds that it takes; None for pictures.
        dtype: Number format of the features.
        device: Where they are.
    """

    kind: ClassVar[str]
    num_deepstack: int = 0
    sample_rate_hz: int | None = None

    def __init__(
        self, source: MediaSource, processor: Any, tower_class: type[PreTrainedModel]
    ) -> None:
        """Load the tower.

        Args:
            source: The model.
            processor: What makes inputs of the tower from pictures or sounds.
            tower_class: Transformers' class of the whole model.

        Raises:
            ModelLoadError: the weights cannot be read.
        """
        config: Any = source.config
        self.placeholder = source.placeholder
        self.hidden_size: int = config.text_config.hidden_size
        self.dtype, self.device = source.dtype, source.device
        self.settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
        self._processor = processor
        self._tower = load_tower(
            tower_class, source.folder, source.config, source.dtype, source.device
        )

    @abstractmethod
    def item_of(self, medium: Media) -> MediaItem:
        """Measure a medium: how many features it has, without computing them.

        Raises:
            RequestError: the model cannot take it; the message says why.
        """

    def text_of(self, item: MediaItem) -> str:
        """Return the text that replaces the placeholder of an item in a prompt."""
        return self.placeholder * item.num_features

    def rope_positions(
        self, items: Sequence[MediaItem], positions: NDArray[np.int64], num_prompt_tokens: int
    ) -> NDArray[np.int64] | None:
        """Return the time, row and column of each token of a prompt, [3, num_prompt_tokens].

        Args:
            items: The media of the prompt.
            positions: [num_features], which features fill.
            num_prompt_tokens: Its length.

        Returns:
            None if the model rotates by plain positions.
        """
        return None

    @abstractmethod
    def encode(self, items: Sequence[MediaItem]) -> list[Features]:
        """Compute the features of each item, in one run of the tower where that is possible."""

    def _digest(self, medium: Media) -> bytes:
        return item_digest(medium.content_digest(), self.settings)
