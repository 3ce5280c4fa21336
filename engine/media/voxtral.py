"""Sounds of Voxtral: cut into stretches of 30 s, the last one padded with silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import VoxtralForConditionalGeneration

from batchmill.engine.contract.media import Audio, Media
from batchmill.engine.request.media import MediaItem
from batchmill.engine.step.feature_rows import Features

from .model import MediaModel, MediaSource
from .sounds import at_rate, load_feature_extractor, samples_of


class VoxtralMedia(MediaModel):
    """The audio part of a Voxtral model.

    Source: Liu et al. 2025, "Voxtral"; padding and cutting as in transformers'
    `VoxtralProcessor`.
    """

    kind: ClassVar[str] = Audio.kind

    def __init__(self, source: MediaSource) -> None:
        """Load it.

        Raises:
            ModelLoadError: weights or settings cannot be read.
        """
        config: Any = source.config
        super().__init__(
            source, load_feature_extractor(source.folder), VoxtralForConditionalGeneration
        )
        self.sample_rate_hz: int = self._processor.sampling_rate
        encoder = config.audio_config
        # Its first two convolutions halve the frames, and neighbours are joined to one row.
        self._frames_per_stretch = 2 * encoder.max_source_positions
        num_values = encoder.max_source_positions * encoder.hidden_size
        self._features_per_stretch = num_values // encoder.intermediate_size
        self._samples_per_stretch = self._frames_per_stretch * self._processor.hop_length

    def item_of(self, medium: Media) -> MediaItem:
        """See `MediaModel`; the grid is the number of stretches."""
        assert isinstance(medium, Audio)
        audio = at_rate(medium, self.sample_rate_hz)
        num_stretches = -(-len(audio.samples) // 4 // self._samples_per_stretch)
        num_features = num_stretches * self._features_per_stretch
        return MediaItem(audio, self._digest(medium), num_features, (num_stretches,))

    def encode(self, items: Sequence[MediaItem]) -> list[Features]:
        """See `MediaModel`; all stretches of all items are one batch of the tower."""
        stretches = torch.cat([self._stretches(item) for item in items])
        with torch.inference_mode():
            found = self._tower.get_audio_features(stretches.to(self.device))
            rows = found.pooler_output
        return [Features(part) for part in rows.split([item.num_features for item in items])]

    def _stretches(self, item: MediaItem) -> torch.Tensor:
        """Return the spectrum of an item, [num_stretches, num_bins, num_frames] float32."""
        found = self._processor(
            samples_of(item.medium),
            sampling_rate=self.sample_rate_hz,
            padding=True,
            truncation=False,
            pad_to_multiple_of=self._samples_per_stretch,
            return_tensors="pt",
        )
        spectrum: torch.Tensor = found["input_features"][0]
        num_bins = len(spectrum)
        return spectrum.reshape(num_bins, -1, self._frames_per_stretch).transpose(0, 1)
