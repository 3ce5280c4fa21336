"""The detector of watermarks in texts: a model's tokenizer and the operator's keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from batchmill.engine.loading.model_source import model_folder
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.engine.watermark.detection import Detector, WatermarkDetection
from batchmill.engine.watermark.key import read_keys

from .errors import ConfigError


class WatermarkDetector:
    """Looks for watermarks in texts. It loads a tokenizer and no weights."""

    def __init__(self, model: str, secrets: Mapping[str, str]) -> None:
        """Read the tokenizer.

        Args:
            model: The model that wrote the texts, or any with the same tokenizer; see
                `EngineConfig.model`.
            secrets: The keys to look for, name to secret.

        Raises:
            ConfigError: there is no key.
            ModelLoadError: the tokenizer cannot be found or read.
        """
        if not secrets:
            raise ConfigError("there is no watermark key to look for: give at least one")
        self._keys = read_keys(secrets)
        self._tokenizer = Tokenizer.from_folder(model_folder(model))

    def detect(self, texts: Iterable[str]) -> list[WatermarkDetection]:
        """Look for each key in all of some texts together; the likeliest first.

        The texts are outputs without their prompts. A text need not be complete: words that were
        changed or cut cost the places around them.

        Raises:
            RequestError: UTF-8 cannot encode a text.
        """
        detectors = [Detector(key) for key in self._keys.values()]
        for text in texts:
            token_ids = self._tokenizer.encode_plain(text)
            for detector in detectors:
                detector.add(token_ids)
        return sorted((each.detection for each in detectors), key=lambda each: each.p_value)
