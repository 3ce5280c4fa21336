"""Sounds come to the model's sample rate, and keep the identity of what was given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from batchmill.engine.contract.media import Audio
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import load_model
from batchmill.engine.media.sounds import at_rate, samples_of

from ...support.tiny_media_models import save_qwen3_asr


def tone(sample_rate_hz: int, num_samples: int) -> Audio:
    times = np.arange(num_samples) / sample_rate_hz
    samples = np.sin(2 * np.pi * 440 * times).astype("<f4")
    return Audio(sample_rate_hz, samples.tobytes())


def test_a_sound_of_another_rate_sounds_the_same() -> None:
    found = at_rate(tone(44_100, 44_100), 16_000)
    assert found.sample_rate_hz == 16_000
    expected = samples_of(tone(16_000, 16_000))
    inner = slice(200, -200)  # the filter rings at both ends
    assert np.abs(samples_of(found)[inner] - expected[inner]).max() < 1e-3
    assert at_rate(found, 16_000) is found
    assert at_rate(Audio(96_000, bytes(4)), 16_000).duration_s > 0


def test_without_the_library_another_rate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(RequestError, match="soxr is not installed") as refusal:
        at_rate(tone(8_000, 80), 16_000)
    assert refusal.value.code == "unsupported_parameter"


def test_features_are_counted_as_the_tower_makes_them(tmp_path: Path) -> None:
    save_qwen3_asr(tmp_path)
    model = load_model(str(tmp_path), dtype="float32", device="cpu").media
    assert model is not None
    sounds = [tone(16_000, num) for num in (1, 159, 8_000, 8_161, 16_000, 16_079, 17_600, 33_333)]
    items = [model.item_of(each) for each in (*sounds, tone(11_025, 9_999))]
    for item, features in zip(items, model.encode(items), strict=True):
        assert len(features.rows) == item.num_features
    assert len({item.digest for item in items}) == len(items)
