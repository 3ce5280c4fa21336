"""`batchmill bulk` given again with another `--model`: no job of the other one is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..command_line import CommandResult, call, error_of
from ..conftest import Mill
from .bulk_files import read_lines, text_of, write_lines

LINES = [
    {"prompt": "same", "temperature": 0},
    {"prompt": "same", "temperature": 0},
    {"prompt": "same", "temperature": 0, "model": "named"},
    {"prompt": "other", "seed": 7},
]


def bulk(mill: Mill, folder: Path, *arguments: str) -> CommandResult:
    """Run the command once over the lines: it submits them, and collects what is there."""
    source = folder / "in.jsonl"
    if not source.exists():
        write_lines(source, LINES)
    files = (str(source), "-o", str(folder / "out.jsonl"))
    return call("bulk", *files, "--max-tokens", "2", *arguments, "--broker-url", mill.url)


def waiting(mill: Mill) -> dict[str, int]:
    """Return how many jobs wait in the queue of each model."""
    depths = {depth.queue: depth.queued for depth in mill.store.queue_depths()}
    return {queue.split(".")[1]: number for queue, number in depths.items() if number}


@pytest.mark.parametrize(
    ("options", "num_jobs"), [((), 4), (("--deduplicate",), 3)], ids=["each", "shared"]
)
def test_the_last_model_alone_has_jobs(
    mill: Mill, tmp_path: Path, options: tuple[str, ...], num_jobs: int
) -> None:
    for model in ("first", "second", "first", "first", "third", "second"):
        answer = bulk(mill, tmp_path, "--model", model, "--timeout-s", "0", *options)
        assert answer.returncode == 7, answer.stderr
        assert waiting(mill) == {model: num_jobs}
    mill.start_worker()
    answer = bulk(mill, tmp_path, "--model", "demo", *options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{num_jobs} jobs of an earlier --model were cancelled" in answer.stdout
    assert waiting(mill) == {}
    assert len(read_lines(tmp_path / "out.jsonl")) == len(LINES)
    assert read_lines(tmp_path / "out.errors.jsonl") == []
    assert mill.store.counts().totals["completed"] == num_jobs


def test_results_that_are_there_are_used_and_the_jobs_of_the_other_model_cancelled(
    mill: Mill, tmp_path: Path
) -> None:
    assert bulk(mill, tmp_path, "--model", "demo", "--timeout-s", "0").returncode == 7
    worker = mill.start_worker()
    mill.wait_for(lambda: mill.store.counts().totals.get("completed") == 4, "four results")
    worker.end()
    assert bulk(mill, tmp_path, "--model", "other", "--timeout-s", "0").returncode == 7
    assert waiting(mill) == {"other": 4}
    answer = bulk(mill, tmp_path, "--model", "demo")
    assert answer.returncode == 0, answer.stderr
    assert waiting(mill) == {}
    texts = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["text"]
        for line in read_lines(tmp_path / "out.jsonl")
    }
    assert texts["line-4"] == text_of("other", 2)


def test_a_command_killed_after_it_cancelled_the_jobs_of_the_first_model_loses_no_line(
    mill: Mill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A full queue of the second model keeps the command where a kill may meet it as well.
    mill.submit("fills the queue", model="second", priority="low")
    assert bulk(mill, tmp_path, "--model", "demo", "--timeout-s", "0").returncode == 7
    monkeypatch.setenv("BATCHMILL_MAX_QUEUE_DEPTH", "1")
    assert bulk(mill, tmp_path, "--model", "second", "--timeout-s", "0.5").returncode == 7
    monkeypatch.delenv("BATCHMILL_MAX_QUEUE_DEPTH")
    assert waiting(mill) == {"second": 1}
    mill.start_worker()
    answer = bulk(mill, tmp_path, "--model", "demo")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert len(read_lines(tmp_path / "out.jsonl")) == len(LINES)
    assert read_lines(tmp_path / "out.errors.jsonl") == []


def test_jobs_that_an_operator_cancelled_are_failures_and_not_sent_again(
    mill: Mill, tmp_path: Path
) -> None:
    assert bulk(mill, tmp_path, "--model", "demo", "--timeout-s", "0").returncode == 7
    call("cancel", "--model", "demo", "--broker-url", mill.url)
    answer = bulk(mill, tmp_path, "--model", "demo")
    assert answer.returncode == 6
    errors = [line["error"]["code"] for line in read_lines(tmp_path / "out.errors.jsonl")]
    assert errors == ["cancelled"] * 4


def test_a_run_that_is_a_batch_refuses_another_model_and_fails_no_line(
    mill: Mill, tmp_path: Path
) -> None:
    batch = ("--webhook", "https://example.com/hook", "--timeout-s", "0")
    assert bulk(mill, tmp_path, "--model", "first", *batch).returncode == 7
    answer = bulk(mill, tmp_path, "--model", "second", *batch, "--json")
    assert answer.returncode == 2
    assert "batchmill batch cancel batch_" in error_of(answer)["message"]
    assert read_lines(tmp_path / "out.errors.jsonl") == []
    assert waiting(mill) == {"first": 4}
    assert bulk(mill, tmp_path, "--model", "first", *batch).returncode == 7
