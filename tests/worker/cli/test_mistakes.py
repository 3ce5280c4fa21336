"""Mistakes that users make: each ends in one line that names the remedy, never in a traceback."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchmill.worker.cli.errors import ExitCode, report_error

from ..command_line import COMMAND, call, error_of, run


def environment_without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def test_a_misspelled_variable_is_named_with_the_setting_that_was_meant() -> None:
    result = call("webhook-secret", BATCHMILL_MAX_NUM_SEQ="3", BATCHMILL_ZZZ="1")

    assert result.returncode == 0
    assert result.stdout.startswith("whsec_")
    first, second = result.stderr.splitlines()
    assert "BATCHMILL_MAX_NUM_SEQ is set but is not a setting" in first
    assert first.endswith("did you mean BATCHMILL_MAX_NUM_SEQS?")
    assert "BATCHMILL_ZZZ" in second
    assert "did you mean" not in second


@pytest.mark.parametrize(
    "variable",
    ["BATCHMILL_MODEL", "BATCHMILL_WEBHOOK_SECRET_FILE", "BATCHMILL_STATE_DIR", "BATCHMILL_DEBUG"],
)
def test_a_variable_that_something_reads_gives_no_warning(variable: str) -> None:
    assert call("webhook-secret", **{variable: "1"}).stderr == ""


def test_an_unforeseen_error_is_one_line_and_its_traceback_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state"
    monkeypatch.setenv("BATCHMILL_STATE_DIR", str(folder))
    monkeypatch.delenv("BATCHMILL_DEBUG", raising=False)

    assert report_error(TypeError("two\nlines"), as_json=False) is ExitCode.FAILED

    path = folder / "logs" / "command-error.log"
    assert capsys.readouterr().err == (
        f"Error: unforeseen error, TypeError: two lines; its traceback is in {path}\n"
    )
    assert "TypeError: two\nlines" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # as `up` demands


def test_an_unforeseen_error_is_told_without_a_folder_for_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCHMILL_STATE_DIR", "/proc/no-such-folder")
    monkeypatch.setattr("tempfile.tempdir", "/proc/no-such-folder")
    monkeypatch.delenv("BATCHMILL_DEBUG", raising=False)

    report_error(KeyError("x"), as_json=True)

    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "internal"
    assert "BATCHMILL_DEBUG=1 shows its traceback" in error["message"]


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_DEBUG", "1")
    with pytest.raises(TypeError):
        report_error(TypeError("x"), as_json=False)


def test_a_home_that_cannot_be_written_ends_up_with_the_setting_that_moves_it() -> None:
    result = subprocess.run(
        [*COMMAND, "up"],
        env=environment_without("XDG_STATE_HOME", "BATCHMILL_STATE_DIR")
        | {"HOME": "/proc/no-such-home"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == ExitCode.CONFIG, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "set BATCHMILL_STATE_DIR to a folder" in result.stderr


def test_a_port_for_a_broker_that_would_not_be_started_is_refused(tmp_path: Path) -> None:
    result = run(
        *("up", "--broker-port", "6390", "--state-dir", str(tmp_path)),
        BATCHMILL_BROKER_URL="redis://:secret@other.invalid:6379/0",
    )
    assert result.returncode == ExitCode.USAGE, result.stderr
    assert "--broker-port 6390 is of the embedded broker" in result.stderr
    assert "other.invalid" in result.stderr
    assert "secret" not in result.stderr


def test_a_list_of_shards_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    result = run(
        *("up", "--engine", "stub", "--state-dir", str(tmp_path / "state")),
        BATCHMILL_BROKER_URLS="a=redis://a.invalid:6379/0 b=redis://b.invalid:6379/0",
    )
    assert result.returncode == ExitCode.CONFIG, result.stderr
    assert "BATCHMILL_BROKER_URLS names a list of shards: unset it" in result.stderr
    assert not (tmp_path / "state").exists()


def test_text_that_the_terminal_cannot_encode_is_escaped() -> None:
    result = run("--help", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "\\u2026" in result.stdout


def test_a_prompt_in_another_encoding_is_refused() -> None:
    result = subprocess.run(
        [*COMMAND, "submit", "--json"],
        input="Grüße".encode("latin-1"),
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        timeout=60,
    )
    error = json.loads(result.stderr)["error"]
    assert (result.returncode, error["code"]) == (ExitCode.USAGE, "usage")
    assert "byte 2 is 0xfc" in error["message"]


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = subprocess.run(
            [*COMMAND, "config", "show"], stdout=write_end, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (ExitCode.FAILED, b"")


def test_ctrl_c_while_the_program_is_imported_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path(__file__).with_name('importing').touch()\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "batchmill.worker.cli", "status"],
        env={"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "importing").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, b"")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:99999/0", "http://127.0.0.1/"])
def test_an_invalid_broker_url_is_a_wrong_setting(url: str) -> None:
    result = call("status", "--json", "--broker-url", url)
    assert result.returncode == ExitCode.CONFIG, result.stderr
    assert error_of(result)["code"] in ("invalid_broker_url", "invalid_settings")
