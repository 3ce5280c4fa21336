"""The demo model, loaded once for all engine tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from batchmill.engine.model_source import model_folder


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The demo model as a Hugging Face folder; the first run on a machine converts it (20 s)."""
    return model_folder("demo")


@pytest.fixture(scope="session")
def hf_demo_model_fp32(demo_model_path: Path) -> PreTrainedModel:
    """The demo model as transformers runs it, in float32."""
    model = AutoModelForCausalLM.from_pretrained(demo_model_path, dtype=torch.float32)
    model.eval()
    return model
