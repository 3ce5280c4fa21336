"""What a job leaves out is sampled as the model's makers recommend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.errors import ModelLoadError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.producer.job.controls import SamplingControls
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.engine_host.real_engine import RealEngine

from ...support.tiny_models import NATIVE, random_model

PROMPT = list(range(2, 12))
CONFIG: dict[str, Any] = {"model": "tiny", "max_model_len": 64, "kv_cache_bytes": 1_000_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose makers recommend the likeliest tokens."""
    path = tmp_path_factory.mktemp("model")
    random_model(NATIVE["Llama"], path)
    recommend(path, temperature=0.0, top_k=5, do_sample=True, max_new_tokens=7)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    """The model, loaded once."""
    return load_model(str(folder), dtype="float32", device="cpu")


def recommend(folder: Path, **controls: Any) -> None:
    """Write the model's generation_config.json."""
    (folder / "generation_config.json").write_text(json.dumps(controls))


def texts(engine: Engine, **fields: Any) -> set[tuple[int, ...]]:
    """Return the different outputs of a job under five seeds, as a worker computes them."""
    hosted, found = RealEngine(engine), set()
    for seed in range(5):
        job = GenerationJob.model_validate(
            {"model": "tiny", "prompt": PROMPT, "seed": seed, "max_tokens": 6, **fields}
        )
        stored = GenerationJob.model_validate_json(prepare(job, ProducerSettings()).document)
        params = stored.model_dump(include=set(SamplingControls.model_fields))
        hosted.add(AddRequest(f"r{seed}", PROMPT, None, params))
        while hosted.has_unfinished():
            found |= {tuple(each.token_ids) for each in hosted.step().finished}
    return found


def test_a_job_gets_the_models_defaults_and_its_own_numbers_count(loaded: LoadedModel) -> None:
    assert loaded.sampling_defaults == {"temperature": 0.0, "top_k": 5}
    engine = Engine(EngineConfig(**CONFIG), loaded=loaded)
    assert len(texts(engine)) == 1
    assert texts(engine) == texts(engine, temperature=0)
    assert len(texts(engine, temperature=1.5, top_k=0)) > 1
    assert len(texts(engine, temperature=1.5, top_k=1)) == 1


def test_the_log_names_the_defaults(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load_model(str(folder), dtype="float32", device="cpu")
    assert "recommend to sample with temperature 0.0, top_k 5" in caplog.text


def test_the_defaults_can_be_switched_off(loaded: LoadedModel) -> None:
    engine = Engine(EngineConfig(**CONFIG, generation_config="none"), loaded=loaded)
    assert len(texts(engine)) > 1


def test_the_engine_alone_uses_them_for_requests_without_params(loaded: LoadedModel) -> None:
    engine = Engine(EngineConfig(**CONFIG), loaded=loaded)
    (first, second) = engine.generate([PROMPT, PROMPT])
    assert first.token_ids == second.token_ids


def test_a_default_out_of_range_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    recommend(tmp_path, top_p=7)
    with pytest.raises(ModelLoadError, match=r"generation_config\.json .*top_p"):
        load_model(str(tmp_path), dtype="float32", device="cpu")
