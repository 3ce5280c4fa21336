"""A field of `EngineConfig` is a setting, a flag and an option of the engine, written once."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields

import pytest
from pydantic import ValidationError

from batchmill.engine import EngineConfig
from batchmill.engine.config import TOOL_CALL_PARSERS
from batchmill.worker.cli.setting_docs import setting_docs
from batchmill.worker.cli.setting_flags import add_setting_flags
from batchmill.worker.settings import ENGINE_SETTINGS, WorkerSettings, engine_settings

#: `model` has no default; the order of jobs is the queue's, each job brings its own seed, and the
#: worker reads the secrets of watermarks itself, as they may be in a file.
NOT_DERIVED = {"model", "priority_ageing_s", "seed", "watermark_keys"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LargerConfig(EngineConfig):
    """A configuration with one more field."""

    #: Wheels that turn the mill.
    num_wheels: int = 4


def test_every_field_of_the_configuration_is_a_setting() -> None:
    defaults = {field.name: field.default for field in fields(EngineConfig)}
    assert set(ENGINE_SETTINGS) == set(defaults) - NOT_DERIVED
    for name in ENGINE_SETTINGS:
        assert defaults[name] is not MISSING
        assert WorkerSettings.model_fields[name].default == defaults[name]
    assert set(WorkerSettings().engine_options()) == {*ENGINE_SETTINGS, "watermark_keys"}
    assert WorkerSettings().engine_config == EngineConfig(model="demo")


def test_a_new_field_is_a_variable_and_a_flag_with_its_comment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = engine_settings(LargerConfig)
    monkeypatch.setenv("BATCHMILL_NUM_WHEELS", "5")
    assert settings().model_dump()["num_wheels"] == 5
    assert setting_docs(settings)["num_wheels"] == "Wheels that turn the mill."
    assert "num_wheels" in inspect.signature(add_setting_flags(lambda: None, settings)).parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_num_seqs", 0), ("quantization", "int3"), ("gpu_memory_utilization", 1.5)],
)
def test_a_wrong_value_is_blamed_on_its_setting(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=f"{name} is {value!r}: ") as caught:
        WorkerSettings.model_validate({name: value})
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize(("given", "meant"), [("auto", "auto"), ("on", True), ("off", False)])
def test_a_switch_is_auto_on_or_off(given: str, meant: bool | str) -> None:
    settings = WorkerSettings.model_validate({"overlap": given, "decode_graphs": given})
    assert (settings.engine_config.overlap, settings.engine_config.decode_graphs) == (meant, meant)


def test_the_setting_knows_every_format_of_tool_calls() -> None:
    for parser in TOOL_CALL_PARSERS:
        settings = WorkerSettings.model_validate({"tool_call_parser": parser})
        assert settings.engine_options()["tool_call_parser"] == parser
