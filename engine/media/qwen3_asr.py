"""Sounds of Qwen3-ASR: of any length, in attention windows of some seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Qwen3ASRForConditionalGeneration

from batchmill.engine.contract.media import Audio, Media
from batchmill.engine.request.media import MediaItem
from batchmill.engine.step.feature_rows import Features

from .model import MediaModel, MediaSource
from .sounds import at_rate, load_feature_extractor, samples_of


class Qwen3AsrMedia(MediaModel):
    """The audio part of a Qwen3-ASR model.

    Source: transformers' `Qwen3ASRProcessor`.
    """

    kind: ClassVar[str] = Audio.kind

    def __init__(self, source: MediaSource) -> None:
        """Load it.

        Raises:
            ModelLoadError: weights or settings cannot be read.
        """
        config: Any = source.config
        super().__init__(
            source, load_feature_extractor(source.folder), Qwen3ASRForConditionalGeneration
        )
        self.sample_rate_hz: int = self._processor.sampling_rate
        self._window = config.audio_config.n_window

    def item_of(self, medium: Media) -> MediaItem:
        """See `MediaModel`; the grid is the number of frames."""
        assert isinstance(medium, Audio)
        audio = at_rate(medium, self.sample_rate_hz)
        num_samples = max(len(audio.samples) // 4, self._processor.min_length)
        num_frames = max(num_samples // self._processor.hop_length, 1)
        chunk = 2 * self._window
        whole_chunks, rest = divmod(num_frames, chunk)
        num_features = whole_chunks * _after_convolutions(chunk) + _after_convolutions(rest)
        return MediaItem(audio, self._digest(medium), num_features, (num_frames,))

    def encode(self, items: Sequence[MediaItem]) -> list[Features]:
        """See `MediaModel`; items of different lengths are padded, and masked."""
        found = [self._spectrum(item) for item in items]
        longest = max(spectrum.shape[-1] for spectrum, _ in found)
        padded = [[pad(each, (0, longest - each.shape[-1])) for each in pair] for pair in found]
        spectra, masks = (torch.stack(each) for each in zip(*padded, strict=True))
        with torch.inference_mode():
            output = self._tower.get_audio_features(
                spectra.to(self.device, self.dtype), masks.to(self.device)
            )
            rows = output.pooler_output
        return [Features(part) for part in rows.split([item.num_features for item in items])]

    def _spectrum(self, item: MediaItem) -> tuple[Tensor, Tensor]:
        """Return an item's spectrum, [num_bins, num_frames] float32, and which frames count."""
        found = self._processor(
            samples_of(item.medium),
            sampling_rate=self.sample_rate_hz,
            padding=True,
            return_attention_mask=True,
            n_window=self._window,
            return_tensors="pt",
        )
        return found["input_features"][0], found["attention_mask"][0]


def _after_convolutions(num_frames: int) -> int:
    """Return how many rows three convolutions, each of stride 2, make of some frames."""
    for _ in range(3):
        num_frames = (num_frames + 1) // 2
    return num_frames
