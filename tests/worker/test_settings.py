"""Worker settings: read from the environment, and checked together."""

from __future__ import annotations

import ssl

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from batchmill.producer.settings import ProducerSettings
from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.settings import WorkerSettings
from batchmill.worker.webhooks.settings import WebhookSettings


def test_every_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_MODEL", "org/model-1b")
    monkeypatch.setenv("BATCHMILL_MAX_NUM_SEQS", "8")
    monkeypatch.setenv("BATCHMILL_KV_CACHE_BYTES", "1000000")
    monkeypatch.setenv("BATCHMILL_NUM_SPECULATIVE_TOKENS", "10")

    settings = WorkerSettings()

    assert settings.queues == tuple(
        f"batchmill.org/model-1b.{priority}" for priority in ("high", "normal", "low")
    )
    options = settings.engine_options()
    assert (options["max_num_seqs"], options["kv_cache_bytes"]) == (8, 1_000_000)
    assert options["num_speculative_tokens"] == 10


def test_a_path_needs_a_served_name() -> None:
    with pytest.raises(ValidationError, match="BATCHMILL_SERVED_MODEL_NAME"):
        WorkerSettings(model="/models/mine")

    settings = WorkerSettings(model="/models/mine", served_model_name="mine")
    assert settings.queues[1] == "batchmill.mine.normal"


def test_values_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_num_batched_tokens is 16"):
        WorkerSettings.model_validate({"max_num_batched_tokens": 16, "max_num_seqs": 32})
    with pytest.raises(ValidationError, match="prompt_lookup_min is 5"):
        WorkerSettings.model_validate({"prompt_lookup_min": 5})
    with pytest.raises(ValidationError, match="leave overlap at 'auto' or switch it off"):
        WorkerSettings.model_validate({"num_speculative_tokens": 5, "overlap": "on"})
    with pytest.raises(ValidationError, match="BATCHMILL_ENGINE=stub"):
        WorkerSettings(stub={"step_time_s": 1})


@pytest.mark.parametrize("seconds", [315_360_001, 2**63])
def test_a_time_to_live_that_redis_cannot_keep_is_refused(seconds: int) -> None:
    with pytest.raises(ValidationError, match=f"result_ttl_s is {seconds}.*BATCHMILL_RESULT_TTL_S"):
        WorkerSettings(result_ttl_s=seconds)
    assert WorkerSettings(result_ttl_s=315_360_000).result_ttl_s == 315_360_000


def test_two_workers_on_one_machine_have_two_names() -> None:
    assert WorkerSettings(model="org/model").node_name.startswith("org-model-")
    assert WorkerSettings(worker_name="w@h").node_name == "w@h"


def test_a_password_is_never_shown() -> None:
    settings = WorkerSettings(broker_url="rediss://:hidden@host:6379/0")
    app = create_app(settings)

    shown = repr(settings) + str(app.conf.table(with_defaults=True, censored=True))
    shown += app.connection_for_read().as_uri() + app.backend.as_uri()

    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("url", "read_url", "write_url"),
    [
        ("redis://host:6380/2", "batchmill://host:6380/2", "redis://host:6380/2"),
        ("rediss://host/1", "batchmill://host/1", "rediss://host/1"),
        ("unix:///run/x.sock?db=3", "batchmill+socket:///run/x.sock?virtual_host=3",
         "redis+socket:///run/x.sock?virtual_host=3"),
    ],
)  # fmt: skip
def test_only_consumers_use_our_transport(url: str, read_url: str, write_url: str) -> None:
    app = create_app(WorkerSettings(broker_url=url))

    assert app.conf.broker_read_url == read_url
    assert app.conf.broker_write_url == write_url
    assert app.connection_for_read().transport.driver_type == "redis"


def test_an_encrypted_connection_checks_the_certificate() -> None:
    plain = create_app(WorkerSettings(broker_url="rediss://host/1"))
    asked = create_app(WorkerSettings(broker_url="rediss://host/1?ssl_cert_reqs=none"))

    assert plain.connection_for_read().ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert asked.connection_for_read().ssl == {"ssl_cert_reqs": ssl.CERT_NONE}


@pytest.mark.parametrize("settings", [ProducerSettings, WorkerSettings, WebhookSettings])
def test_an_empty_variable_counts_as_not_set(
    settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = settings()
    for name in settings.model_fields:
        monkeypatch.setenv(f"BATCHMILL_{name.upper()}", "")
        monkeypatch.setenv(f"BATCHMILL_{name.upper()}_FILE", "")
    assert settings() == defaults


def test_the_word_none_unsets_a_setting_that_may_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_MAX_MEMORY_PERCENT", "None")
    monkeypatch.setenv("BATCHMILL_UNSERVED_TTL_S", "none")
    monkeypatch.setenv("BATCHMILL_SERVED_MODEL_NAME", "none")
    settings = WorkerSettings()
    assert settings.max_memory_percent is settings.unserved_ttl_s is None
    assert settings.served_model_name is None

    monkeypatch.setenv("BATCHMILL_LEASE_S", "none")
    with pytest.raises(ValidationError, match="lease_s"):
        WorkerSettings()
