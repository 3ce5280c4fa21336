"""Commands on stored jobs: list, progress, cancel, retry and forget; shell completion."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore

from ...support.worker_info import worker_info
from ..command_line import COMMAND, call, complete, error_of


def submit(broker: dict[str, str], *options: str) -> str:
    return call("submit", "a prompt", *options, **broker).stdout.strip()


def output_of(*arguments: str, **broker: str) -> Any:
    """Return the JSON output of a command that must succeed."""
    answer = call(*arguments, "--json", **broker)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def fail(store: JobStore, job_id: str) -> None:
    claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    error = '{"code":"engine_error","message":"it broke"}'
    store.complete(job_id, fence=claim.fence, state=JobState.FAILED, error=error)


def test_jobs_are_listed_by_tag_tenant_and_state(broker: dict[str, str], store: JobStore) -> None:
    first = submit(broker, "--tag", "night", "--tag", "mail", "--tenant", "acme")
    second = submit(broker, "--tag", "night")
    complete(store, second)
    jobs = output_of("list", "--tag", "night", **broker)["jobs"]
    assert {job["id"] for job in jobs} == {first, second}
    assert [job["id"] for job in output_of("list", "--tenant", "acme", **broker)["jobs"]] == [first]
    [done] = output_of("list", "--tag", "night", "--state", "completed", **broker)["jobs"]
    assert (done["id"], done["tags"], done["output_tokens"]) == (second, ["night"], 2)
    text = call("list", **broker).stdout
    assert first in text
    assert "night, mail" in text
    assert "a prompt" not in text


def test_a_long_list_continues_from_its_cursor(broker: dict[str, str]) -> None:
    ids = {submit(broker) for _ in range(3)}
    page = output_of("list", "--limit", "2", **broker)
    rest = output_of("list", "--cursor", page["next_cursor"], **broker)
    assert {job["id"] for job in page["jobs"] + rest["jobs"]} == ids
    assert rest["next_cursor"] is None
    assert "--cursor" in call("list", "--limit", "2", **broker).stdout


def test_jobs_are_cancelled_by_tag(broker: dict[str, str]) -> None:
    for _ in range(2):
        submit(broker, "--tag", "night")
    other = submit(broker, "--tag", "nights")
    expected = {"cancelled": 2, "cancelling": 0, "already_terminal": 0}
    assert output_of("cancel", "--tag", "night", **broker) == expected
    assert output_of("status", other, **broker)["state"] == "queued"
    assert "2 had already ended" in call("cancel", "--tag", "night", **broker).stdout


def test_several_jobs_are_cancelled_although_one_is_unknown(broker: dict[str, str]) -> None:
    ids = [submit(broker) for _ in range(2)]
    answer = call("cancel", ids[0], "gen_unknown", ids[1], "--json", **broker)
    assert answer.returncode == 5
    outcomes = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [(x["id"], x["outcome"]) for x in outcomes] == [(i, "cancelled") for i in ids]
    assert json.loads(answer.stderr)["error"]["code"] == "unknown_job"


def test_a_failed_job_is_retried_and_a_completed_one_is_not(
    broker: dict[str, str], store: JobStore
) -> None:
    failed, done = submit(broker), submit(broker)
    fail(store, failed)
    complete(store, done)
    assert output_of("retry", failed, **broker) == {"id": failed, "run": 2}
    assert output_of("status", failed, **broker)["state"] == "queued"
    refused = call("retry", done, "--json", **broker)
    assert refused.returncode == 4
    assert (error_of(refused)["code"], error_of(refused)["state"]) == ("wrong_state", "completed")
    assert "completed" in call("retry", done, **broker).stderr


def test_jobs_are_forgotten_by_id_and_by_tag(broker: dict[str, str], store: JobStore) -> None:
    ids = [submit(broker, "--tag", "customer") for _ in range(3)]
    refused = call("forget", ids[0], "--json", **broker)
    assert (refused.returncode, error_of(refused)["code"]) == (4, "wrong_state")
    for job_id in ids[:2]:
        call("cancel", job_id, **broker)
    assert output_of("forget", ids[0], **broker) == {"id": ids[0], "outcome": "forgotten"}
    assert output_of("forget", "--tag", "customer", **broker) == {"forgotten": 1, "active": 1}
    assert call("status", ids[0], **broker).returncode == 5


def announce_worker(store: JobStore) -> None:
    store.announce_worker(worker_info("w", stats={"jobs": 1, "tokens_per_s": 10.0}))


def test_progress_of_a_job_and_of_many(broker: dict[str, str], store: JobStore) -> None:
    job_id = submit(broker, "--tag", "t", "--max-tokens", "20")
    assert "no worker serves demo" in call("progress", job_id, **broker).stdout
    announce_worker(store)
    progress = output_of("progress", job_id, **broker)
    assert (progress["queue_position"], progress["eta_s"]) == (0, 2.0)
    assert "ETA 0:00:02" in call("progress", job_id, **broker).stdout
    other = submit(broker, "--tag", "t", "--max-tokens", "20")
    complete(store, other)
    for choice in (["--tag", "t"], [job_id, other]):
        summary = output_of("progress", *choice, **broker)
        assert (summary["total"], summary["done"]) == (2, 1)
    assert "1 of 2 done" in call("progress", "--tag", "t", **broker).stdout


def test_watched_progress_is_one_line_per_change(broker: dict[str, str], store: JobStore) -> None:
    job_id = submit(broker)
    watching = subprocess.Popen(
        [*COMMAND, "progress", job_id, "--watch", "--interval-s", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **broker},
    )
    assert watching.stdout is not None
    assert "queued" in watching.stdout.readline()
    complete(store, job_id)
    rest = watching.communicate(timeout=60)[0].splitlines()
    assert "completed" in rest[-1]
    assert len(rest) <= 2  # it may have been seen while it ran
    assert watching.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["list", "--tag", "a,b"], 2, "invalid_query"),
        (["list", "--state", "done"], 2, "invalid_query"),
        (["list", "--cursor", "x"], 2, "invalid_query"),
        (["list", "--limit", "0"], 2, "usage"),
        (["cancel"], 2, "invalid_query"),
        (["cancel", "gen_x", "--tag", "t"], 2, "usage"),
        (["forget"], 2, "invalid_query"),
        (["forget", "gen_x", "--tenant", "t"], 2, "usage"),
        (["forget", "gen_unknown"], 5, "unknown_job"),
        (["retry"], 2, "usage"),
        (["retry", "gen_unknown"], 5, "unknown_job"),
        (["progress"], 2, "usage"),
        (["progress", "gen_unknown"], 5, "unknown_job"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_refused_action_has_its_exit_code(
    broker: dict[str, str], arguments: list[str], exit_code: int, code: str
) -> None:
    answer = call(*arguments, "--json", **broker)
    assert (answer.returncode, error_of(answer)["code"]) == (exit_code, code)


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment with `batchmill` as a program on PATH, as pip installs it."""
    program = tmp_path / "batchmill"
    start = "import sys; sys.argv[0] = 'batchmill'; from batchmill.worker.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(start)} "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_bash_completes_commands_and_options(installed: dict[str, str]) -> None:
    script = (
        'eval "$(_BATCHMILL_COMPLETE=source_bash batchmill)"\n'
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        '  _batchmill_completion batchmill; echo "${COMPREPLY[*]}"; }\n'
        "try batchmill dead-l\n"
        "try batchmill dead-letters re\n"
        "try batchmill list --ten\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=installed,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["dead-letters", "retry", "--tenant"], done.stderr


@pytest.mark.parametrize(
    ("shell", "asked", "expected"),
    [
        ("zsh", {}, '"dead-letters":'),
        ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "dead-letters\t"),
    ],
)
def test_other_shells_get_completions_in_the_form_their_scripts_ask_for(
    installed: dict[str, str], shell: str, asked: dict[str, str], expected: str
) -> None:
    def output(**asked: str) -> str:
        done = subprocess.run(
            ["batchmill"], env={**installed, **asked}, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    script = output(_BATCHMILL_COMPLETE=f"source_{shell}")
    assert f"complete_{shell}" in script
    for name in (*asked, "_TYPER_COMPLETE_ARGS"):
        assert name in script
    words = {"_BATCHMILL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "batchmill dead-l"}
    assert expected in output(**words, **asked)


def test_completion_is_installed_for_the_calling_shell(installed: dict[str, str]) -> None:
    # `; true` keeps bash from replacing itself: the command finds out which shell has started it.
    done = subprocess.run(
        ["bash", "--norc", "-c", "batchmill --install-completion; true"],
        env=installed,
        capture_output=True,
        text=True,
        timeout=60,
    )
    home = Path(installed["HOME"])
    assert "completion installed" in done.stdout, done.stderr
    assert "_batchmill_completion" in (home / ".bash_completions" / "batchmill.sh").read_text()
    assert "batchmill.sh" in (home / ".bashrc").read_text()


def test_ids_in_a_pipe_are_whole_even_if_columns_is_small(broker: dict[str, str]) -> None:
    job_id = submit(broker, "--tag", "a-tag-of-some-length", "--tenant", "a-tenant-of-some-length")
    lines = call("list", COLUMNS="80", **broker).stdout.splitlines()
    [row] = [line for line in lines if line.startswith("gen_")]
    assert row.split()[0] == job_id
    assert "a-tag-of-some-length" in row


def test_jobs_are_found_and_cancelled_by_model_and_time(
    broker: dict[str, str], store: JobStore
) -> None:
    failed = submit(broker, "--model", "gpt-4")
    waiting = submit(broker, "--model", "gpt-4")
    other = submit(broker)
    claim = store.claim(failed, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    error = json.dumps({"code": "engine_error", "message": "x"})
    store.complete(failed, fence=claim.fence, state=JobState.FAILED, error=error, token_ids=[])

    found = call("list", "--model", "gpt-4", "--since", "1h", **broker)
    assert "failed (engine_error)" in found.stdout
    assert waiting in found.stdout
    assert other not in found.stdout
    assert "0 jobs" in call("list", "--until", "1h", **broker).stdout

    cancelled = call("cancel", "--model", "gpt-4", "--json", **broker)
    assert json.loads(cancelled.stdout)["cancelled"] == 1
    assert error_of(call("cancel", "--json", **broker))["code"] == "invalid_query"
    mixed = call("cancel", other, "--model", "demo", "--json", **broker)
    assert "--model, not both" in error_of(mixed)["message"]
