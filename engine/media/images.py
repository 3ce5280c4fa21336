"""Decoded pictures as transformers' processors take them: no path or URL ever reaches one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor

from batchmill.engine.contract.media import Image, Media

from .processors import load_processor


def load_image_processor(folder: Path) -> Any:
    """Read the settings of a model's image processor; it computes with Pillow.

    Raises:
        ModelLoadError: they are missing or broken, or Pillow is not installed.
    """
    return load_processor(
        AutoImageProcessor,
        folder,
        "an image processor",
        "preprocessor_config.json, and batchmill[media] must be installed",
        backend="pil",
    )


def as_arrays(media: Iterable[Media]) -> list[NDArray[np.uint8]]:
    """Return pictures as arrays, [height, width, 3] each."""
    return [_as_array(each) for each in media if isinstance(each, Image)]


def _as_array(image: Image) -> NDArray[np.uint8]:
    pixels = np.frombuffer(image.pixels, dtype=np.uint8)
    return pixels.reshape(image.height, image.width, 3)
