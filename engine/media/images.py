"""Decoded pictures as transformers' processors take them: no path or URL ever reaches one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor

from batchmill.engine.contract.media import Image, Media
from batchmill.engine.errors import ModelLoadError


def load_image_processor(folder: Path) -> Any:
    """Read the settings of a model's image processor; it computes with Pillow.

    Raises:
        ModelLoadError: they are missing or broken, or Pillow is not installed.
    """
    auto: Any = AutoImageProcessor
    try:
        return auto.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each class raises what it likes
        raise ModelLoadError(
            f"transformers cannot read an image processor from {folder} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): it must hold "
            "preprocessor_config.json, and batchmill[media] must be installed"
        ) from error


def as_arrays(media: Iterable[Media]) -> list[NDArray[np.uint8]]:
    """Return pictures as arrays, [height, width, 3] each."""
    return [_as_array(each) for each in media if isinstance(each, Image)]


def _as_array(image: Image) -> NDArray[np.uint8]:
    pixels = np.frombuffer(image.pixels, dtype=np.uint8)
    return pixels.reshape(image.height, image.width, 3)
