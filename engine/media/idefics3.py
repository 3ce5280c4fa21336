"""Pictures of Idefics3 and SmolVLM: square tiles of one size, and the whole as the last one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    Idefics3ForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)

from batchmill.engine.contract.media import Image, Media
from batchmill.engine.request.media import MediaItem
from batchmill.engine.step.feature_rows import Features

from .images import as_arrays, load_image_processor
from .model import MediaModel, MediaSource

#: Longest side to which these processors ever scale a picture, pixels.
_MAX_SIDE = 4096


class Idefics3Media(MediaModel):
    """The vision part of an Idefics3 or SmolVLM model.

    Source: Laurençon et al. 2024, "Building and better understanding vision-language models";
    the text around the tiles is that of transformers' `Idefics3Processor`.
    """

    kind: ClassVar[str] = Image.kind

    def __init__(self, source: MediaSource) -> None:
        """Load it.

        Raises:
            ModelLoadError: weights or settings cannot be read.
        """
        config: Any = source.config
        is_smol = config.model_type == "smolvlm"
        model_class = (
            SmolVLMForConditionalGeneration if is_smol else Idefics3ForConditionalGeneration
        )
        super().__init__(source, load_image_processor(source.folder), model_class)
        self._tile = int(self._processor.max_image_size["longest_edge"])
        num_patches = (self._tile // config.vision_config.patch_size) ** 2
        self._features_per_tile = num_patches // config.scale_factor**2

    def item_of(self, medium: Media) -> MediaItem:
        """See `MediaModel`; the grid is rows and columns of tiles, 0 and 0 for one tile alone."""
        assert isinstance(medium, Image)
        grid = self._tiles_of(medium.width, medium.height)
        num_tiles = grid[0] * grid[1] + 1
        num_features = num_tiles * self._features_per_tile
        return MediaItem(medium, self._digest(medium), num_features, grid)

    def text_of(self, item: MediaItem) -> str:
        """See `MediaModel`; each tile has its place written before it."""
        tile = self.placeholder * self._features_per_tile
        edge = "<fake_token_around_image>"
        whole = f"{edge}<global-img>{tile}{edge}"
        num_rows, num_columns = item.grid
        if not num_rows:
            return whole
        lines = []
        for row in range(1, num_rows + 1):
            places = (f"<row_{row}_col_{column}>" for column in range(1, num_columns + 1))
            lines.append("".join(f"{edge}{place}{tile}" for place in places) + "\n")
        return "".join(lines) + f"\n{whole}"

    def encode(self, items: Sequence[MediaItem]) -> list[Features]:
        """See `MediaModel`; all tiles of all items are one batch of the tower."""
        tiles = [self._pixels(item) for item in items]
        with torch.inference_mode():
            pixels = torch.cat(tiles).to(self.device)
            found = self._tower.get_image_features(pixel_values=pixels[None])
            rows = torch.cat(list(found.pooler_output))
        return [Features(part) for part in rows.split([item.num_features for item in items])]

    def _pixels(self, item: MediaItem) -> torch.Tensor:
        """Return the tiles of an item, [num_tiles, 3, tile, tile] float32."""
        found = self._processor.preprocess(
            as_arrays([item.medium]), return_tensors="pt", input_data_format="channels_last"
        )
        pixels: torch.Tensor = found["pixel_values"][0]
        return pixels

    def _tiles_of(self, width: int, height: int) -> tuple[int, int]:
        """Return into how many rows and columns the processor cuts a picture."""
        if not self._processor.do_image_splitting:
            return 0, 0
        if self._processor.do_resize:
            width, height = _scaled(width, height, int(self._processor.size["longest_edge"]))
        tile, aspect_ratio = self._tile, width / height
        # The longer side grows to whole tiles first, and takes the shorter one along.
        if width >= height:
            columns = math.ceil(width / tile)
            rows = math.ceil(int(columns * tile / aspect_ratio) / tile)
        else:
            rows = math.ceil(height / tile)
            columns = math.ceil(int(rows * tile * aspect_ratio) / tile)
        rows, columns = max(rows, 1), max(columns, 1)
        return (rows, columns) if rows * columns > 1 else (0, 0)


def _scaled(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return the size of a picture whose longer side was scaled to `longest`."""
    aspect_ratio = width / height
    if width >= height:
        width, height = longest, _even(int(longest / aspect_ratio))
    else:
        width, height = _even(int(longest * aspect_ratio)), longest
    width, height = max(width, 1), max(height, 1)
    if max(width, height) <= _MAX_SIDE:
        return width, height
    aspect_ratio = width / height
    if width >= height:
        return _MAX_SIDE, max(1, int(_MAX_SIDE / aspect_ratio))
    return max(1, int(_MAX_SIDE * aspect_ratio)), _MAX_SIDE


def _even(length: int) -> int:
    return length + length % 2
