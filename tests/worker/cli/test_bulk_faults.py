"""`batchmill bulk` with real workers: no result is missing or doubled if processes are killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from pathlib import Path

import pytest

from batchmill.producer import Client

from ..command_line import COMMAND, call
from ..conftest import Mill
from .bulk_files import FAST, bulk, output_of, text_of, write_lines

HOOK = "https://example.com/hook"


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.jsonl"],
        ["rows.csv", "--template", "{a} {c}"],
        ["rows.jsonl", "--template", "{a:>9}"],
        ["rows.jsonl", "--template", "{a!r}"],
        ["rows.jsonl", "--template", "{"],
        ["rows.jsonl", "--system", "x"],
        ["rows.jsonl", "--param", "max_tokens=3"],
        ["rows.jsonl", "--webhook", "https://example.com/", "--deduplicate"],
    ],
    ids=" ".join,
)
def test_invalid_command_lines_end_with_2(mill: Mill, arguments: list[str]) -> None:
    write_lines(mill.folder / "rows.jsonl", [{"a": "b"}])
    (mill.folder / "rows.csv").write_text("a,b\n1,2\n")
    name, *options = arguments
    assert bulk(mill, mill.folder / name, *options).returncode == 2


def start_bulk(mill: Mill, source: Path, *more: str) -> subprocess.Popen[bytes]:
    files = ("-o", mill.folder / "out.jsonl", "--errors", mill.folder / "err.jsonl")
    options = ("--max-tokens", "8", "--in-flight", "300", "--broker-url", mill.url, *more)
    with (mill.folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "bulk", str(source), *map(str, files), *options],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    mill.programs.append(process)
    return process


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_lines(mill: Mill, count: int) -> None:
    path = mill.folder / "out.jsonl"
    mill.wait_for(lambda: num_lines(path) >= count, f"{count} results", timeout_s=180)


def test_nothing_is_missing_or_twice_when_command_and_worker_are_killed(mill: Mill) -> None:
    total = 2000
    source = write_lines(
        mill.folder / "in.jsonl",
        ({"prompt": f"prompt {i}", "seed": i, "custom_id": f"c{i}"} for i in range(total)),
    )
    worker = mill.start_worker(stub=FAST)
    command = start_bulk(mill, source, "--webhook", HOOK)
    wait_lines(mill, 1)
    command.send_signal(signal.SIGKILL)
    command.wait()
    command = start_bulk(mill, source, "--webhook", HOOK)
    wait_lines(mill, num_lines(mill.folder / "out.jsonl") + 100)
    worker.end(signal.SIGKILL)
    mill.start_worker("w2", stub=FAST)
    wait_lines(mill, total // 2)
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    assert num_lines(mill.folder / "out.jsonl") < total
    command = start_bulk(mill, source, "--webhook", HOOK)
    assert command.wait(120) == 0, (mill.folder / "log").read_text()
    lines = output_of(mill)
    assert len(lines) == total
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["text"] for line in lines}
    assert texts == {f"c{i}": text_of(f"prompt {i}", 8, i) for i in range(total)}
    assert mill.store.counts().totals["submitted"] == total, "no line was submitted twice"
    with Client(mill.url) as client:
        [batch] = client.batches()
    numbers = batch.request_counts
    assert (batch.status, numbers.completed, numbers.failed) == ("completed", total, 0)
    [event] = mill.store.outbox_claim(owner="d", limit=9, lease_ms=1000)
    assert (event.type, event.url) == ("batch.completed", HOOK)
    assert f"{total}/{total} done" in (mill.folder / "log").read_text()


def test_a_table_is_whole_and_in_order_after_the_command_was_killed(mill: Mill) -> None:
    total = 400
    source = mill.folder / "in.csv"
    source.write_text("n\n" + "".join(f"{n}\n" for n in range(total)))
    mill.start_worker(stub=FAST)
    out = mill.folder / "out.csv"
    options = ("--template", "{n}", "--max-tokens", "2", "--in-flight", "50", "--param", "seed=7")
    command = [*COMMAND, "bulk", str(source), "-o", str(out), *options, "--broker-url", mill.url]
    with (mill.folder / "log").open("ab") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        mill.programs.append(first)
        journal = mill.folder / "out.csv.journal.jsonl"
        mill.wait_for(lambda: num_lines(journal) >= 1, "a result", timeout_s=60)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert not out.exists()
        done = subprocess.run(command, stdout=log, stderr=log, timeout=120)
    assert done.returncode == 0, (mill.folder / "log").read_text()
    with out.open(newline="") as file:
        rows = [(row["n"], row["text"]) for row in csv.DictReader(file)]
    assert rows == [(str(n), text_of(str(n), 2)) for n in range(total)]
    assert mill.store.counts().totals["submitted"] == total, "no row was submitted twice"


def test_a_full_queue_only_slows_the_run_down(mill: Mill) -> None:
    source = write_lines(mill.folder / "in.jsonl", [{"prompt": f"p{i}"} for i in range(40)])
    mill.start_worker(stub=FAST)
    files = ("-o", str(mill.folder / "out.jsonl"), "--broker-url", mill.url)
    few = {"BATCHMILL_MAX_QUEUE_DEPTH": "3"}
    answer = call("bulk", str(source), "--max-tokens", "2", "--in-flight", "20", *files, **few)
    assert answer.returncode == 0, answer.stderr
    assert len(output_of(mill)) == 40


def test_a_queue_that_no_worker_serves_is_reported(mill: Mill) -> None:
    source = write_lines(mill.folder / "in.jsonl", [{"prompt": "p", "model": "gpt"}])
    command = start_bulk(mill, source)
    log = mill.folder / "log"
    mill.wait_for(lambda: "batchmill.gpt.low" in log.read_text(), "the note")
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    assert "same command" in log.read_text()


def peak_memory_kb(process: subprocess.Popen[bytes]) -> int:
    """Return the peak memory of a process in KiB; 0 if it has ended."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return next((int(row.split()[1]) for row in text.splitlines() if "VmHWM" in row), 0)


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_input(mill: Mill) -> None:
    mill.start_worker(stub=FAST)
    lines = ({"prompt": f"{i} " + "x" * 8000, "max_tokens": 1} for i in range(5000))
    source = write_lines(mill.folder / "in.jsonl", lines)
    command = start_bulk(mill, source)
    wait_lines(mill, 2200)  # by then the second window of lines has been read
    early_kb = peak_memory_kb(command)
    late_kb = early_kb

    def has_ended() -> bool:
        nonlocal late_kb
        late_kb = max(late_kb, peak_memory_kb(command))
        return command.poll() is not None

    mill.wait_for(has_ended, "the end of the run", timeout_s=120)
    assert num_lines(mill.folder / "out.jsonl") == 5000
    more_input_kb = 2800 * 8
    assert 0 < late_kb - early_kb + 1 < more_input_kb / 3
