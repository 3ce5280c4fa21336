"""Worker settings: from the environment, checked together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from batchmill.worker.settings import WorkerSettings


def test_every_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_MODEL", "org/model-1b")
    monkeypatch.setenv("BATCHMILL_MAX_NUM_SEQS", "8")
    monkeypatch.setenv("BATCHMILL_KV_CACHE_BYTES", "1000000")

    settings = WorkerSettings()

    assert settings.queues == tuple(
        f"batchmill.org/model-1b.{priority}" for priority in ("high", "normal", "low")
    )
    options = settings.engine_options()
    assert (options["max_num_seqs"], options["kv_cache_bytes"]) == (8, 1_000_000)


def test_a_path_needs_a_served_name() -> None:
    with pytest.raises(ValidationError, match="BATCHMILL_SERVED_MODEL_NAME"):
        WorkerSettings(model="/models/mine")

    settings = WorkerSettings(model="/models/mine", served_model_name="mine")
    assert settings.queues[1] == "batchmill.mine.normal"


def test_values_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_num_batched_tokens is 16"):
        WorkerSettings(max_num_batched_tokens=16, max_num_seqs=32)
    with pytest.raises(ValidationError, match="BATCHMILL_ENGINE=stub"):
        WorkerSettings(stub={"step_time_s": 1})


def test_two_workers_on_one_machine_have_two_names() -> None:
    assert WorkerSettings(model="org/model").node_name.startswith("org-model-")
    assert WorkerSettings(worker_name="w@h").node_name == "w@h"


def test_a_password_is_not_in_the_repr() -> None:
    settings = WorkerSettings(broker_url="redis://:hidden@host:6379/0")
    assert "hidden" not in repr(settings)
