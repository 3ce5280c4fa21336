"""Decoded sounds as transformers' feature extractors take them, at the model's sample rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor

from batchmill.engine.contract.media import Audio, Media
from batchmill.engine.errors import RequestError

from .processors import load_processor


def load_feature_extractor(folder: Path) -> Any:
    """Read the settings of a model's feature extractor.

    Raises:
        ModelLoadError: they are missing or broken.
    """
    return load_processor(
        AutoFeatureExtractor,
        folder,
        "a feature extractor",
        "preprocessor_config.json or processor_config.json",
    )


def at_rate(audio: Audio, sample_rate_hz: int) -> Audio:
    """Return a sound at another sample rate.

    Raises:
        RequestError: `unsupported_parameter`: the library that resamples is not installed.
    """
    if audio.sample_rate_hz == sample_rate_hz:
        return audio
    try:
        import soxr
    except ImportError:
        raise RequestError(
            "unsupported_parameter",
            f"a sound has {audio.sample_rate_hz} samples a second, the model takes "
            f"{sample_rate_hz}, and soxr is not installed: install batchmill[media], or send it "
            "at that rate",
        ) from None
    samples = soxr.resample(samples_of(audio), audio.sample_rate_hz, sample_rate_hz)
    if not len(samples):
        samples = np.zeros(1, dtype=np.float32)
    return Audio(sample_rate_hz, samples.astype("<f4").tobytes())


def samples_of(medium: Media) -> NDArray[np.float32]:
    """Return the samples of a sound, [num_samples]."""
    assert isinstance(medium, Audio)
    return np.frombuffer(medium.samples, dtype="<f4").astype(np.float32)
