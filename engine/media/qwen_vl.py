"""Pictures of Qwen's vision models: scaled to whole patches, and seen as grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from batchmill.engine.contract.media import Image, Media
from batchmill.engine.errors import RequestError, UnsupportedModelError
from batchmill.engine.request.media import MediaItem
from batchmill.engine.step.feature_rows import Features

from .images import as_arrays, load_image_processor
from .model import MediaModel, MediaSource

_CLASSES: dict[str, Any] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}


class QwenVLMedia(MediaModel):
    """The vision part of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL model.

    Source: Wang et al. 2024, "Qwen2-VL", section 2.1; Bai et al. 2025, "Qwen2.5-VL Technical
    Report" and "Qwen3-VL Technical Report".
    """

    kind: ClassVar[str] = Image.kind

    def __init__(self, source: MediaSource) -> None:
        """Load it.

        Raises:
            ModelLoadError: weights or settings cannot be read.
            UnsupportedModelError: the decoder has fewer layers than the tower has features for.
        """
        config: Any = source.config
        super().__init__(source, load_image_processor(source.folder), _CLASSES[config.model_type])
        self._merge = int(config.vision_config.spatial_merge_size)
        self.num_deepstack = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        if self.num_deepstack >= config.text_config.num_hidden_layers:
            raise UnsupportedModelError(
                f"its tower has features for {self.num_deepstack} layers of its decoder, which has "
                f"{config.text_config.num_hidden_layers}: there must be more"
            )

    def item_of(self, medium: Media) -> MediaItem:
        """See `MediaModel`; the grid is rows and columns of features."""
        assert isinstance(medium, Image)
        processor = self._processor
        patch = processor.patch_size
        try:
            height, width = smart_resize(
                medium.height,
                medium.width,
                factor=patch * processor.merge_size,
                min_pixels=processor.size["shortest_edge"],
                max_pixels=processor.size["longest_edge"],
            )
        except ValueError:
            raise RequestError(
                "invalid_request",
                f"an image of {medium.width} x {medium.height} pixels has one side more than 200 "
                "times as long as the other, which the model does not take: send a part of it",
            ) from None
        grid = height // patch // self._merge, width // patch // self._merge
        return MediaItem(medium, self._digest(medium), grid[0] * grid[1], grid)

    def rope_positions(
        self, items: Sequence[MediaItem], positions: NDArray[np.int64], num_prompt_tokens: int
    ) -> NDArray[np.int64]:
        """See `MediaModel`.

        A picture takes as many positions as its longer side has features; its time stands still.
        """
        found = np.empty((3, num_prompt_tokens), dtype=np.int64)
        at, token, first = 0, 0, 0
        for item in items:
            start = int(positions[first])
            found[:, token:start] = np.arange(start - token) + at
            at += start - token
            rows, columns = item.grid
            token = start + item.num_features
            found[0, start:token] = at
            found[1, start:token] = at + np.repeat(np.arange(rows), columns)
            found[2, start:token] = at + np.tile(np.arange(columns), rows)
            at += max(rows, columns)
            first += item.num_features
        found[:, token:] = np.arange(num_prompt_tokens - token) + at
        return found

    def encode(self, items: Sequence[MediaItem]) -> list[Features]:
        """See `MediaModel`; the patches of all items are one batch of the tower."""
        inputs = self._processor.preprocess(
            as_arrays(item.medium for item in items),
            return_tensors="pt",
            input_data_format="channels_last",
        )
        with torch.inference_mode():
            found = self._tower.get_image_features(
                inputs["pixel_values"].to(self.device), inputs["image_grid_thw"].to(self.device)
            )
        deepstack = getattr(found, "deepstack_features", None) or ()
        by_item = zip(*deepstack, strict=True) if deepstack else ((),) * len(items)
        return [
            Features(rows, tuple(layers))
            for rows, layers in zip(found.pooler_output, by_item, strict=True)
        ]
