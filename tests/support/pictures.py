"""Small pictures, as files and as the engine sees them, and the prompt that the stub makes."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image as PillowImage

from batchmill.engine.contract.media import Image


def png(color: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    """Return a file of one colour."""
    target = io.BytesIO()
    PillowImage.new("RGB", size, color).save(target, "PNG")
    return target.getvalue()


def data_url(content: bytes) -> str:
    """Return a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def decoded(color: str = "red", size: tuple[int, int] = (4, 3)) -> Image:
    """Return what the engine gets of `png`."""
    return Image(*size, PillowImage.new("RGB", size, color).tobytes())


def rendered(*images: Image, text: str = "What?") -> str:
    """Return the prompt of a message with pictures before its text, as the stub renders it."""
    parts: list[Any] = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return f"<user>{parts}" + "".join(f"<{each.content_digest().hex()}>" for each in images)
