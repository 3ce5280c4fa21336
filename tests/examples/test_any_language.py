"""The page for other languages: its commands run, its programs compile, its names exist."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from batchmill.producer.errors import JobRejected, QueueFull
from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

from ..structure.public_interface import ROOT
from ..support.processes import ready_worker, wait_until

PAGE = (ROOT / "docs" / "any-language.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def send(url: str, words: list[str]) -> list[str]:
    """Send a command, with `redis-cli` if there is one; return the lines of the reply."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program is not None:
        command = [program, "-s", url.removeprefix("unix://"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.splitlines()
    with redis.Redis.from_url(url, decode_responses=True) as client:
        reply = client.execute_command(*words)
    return (
        ["" if item is None else str(item) for item in reply]
        if isinstance(reply, list)
        else ["" if reply is None else str(reply)]
    )


def test_the_commands_of_the_page_push_a_job_and_read_it(redis_url: str, tmp_path: Path) -> None:
    push, read, reason, length = (shlex.split(line) for line in block("redis").splitlines())
    store = JobStore.from_url(redis_url)
    with ready_worker(redis_url, store, tmp_path):
        assert send(redis_url, push) == ["1"]
        wait_until(lambda: send(redis_url, read)[0] == "completed", "the job")
        state, result, *_ = send(redis_url, read)
        assert (state, len(json.loads(result)["text"].split())) == ("completed", 48)
        assert send(redis_url, reason) == [""]
        wait_until(lambda: send(redis_url, length) == ["0"], "an empty inbox")

        send(redis_url, [push[0], push[1], push[2].replace("max_tokens", "max_tokns")])
        wait_until(lambda: bool(store.dead_letters()), "the refusal")
    (letter,) = store.dead_letters()
    assert "max_tokns is not a parameter" in letter.reason
    store.close()


def test_the_page_lists_every_reason_of_a_refusal() -> None:
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    take = (ROOT / "producer" / "protocol" / "lua" / "commands" / "inbox_take.lua").read_text()
    mover = (ROOT / "worker" / "jobs" / "inbox_mover.py").read_text()
    used = rejection_codes() | set(re.findall(r"(?:reason = |document, |\), )'(\w+)[:']", take))
    used |= set(re.findall(r'"(\w+): the worker', mover))
    assert {"too_large", "delivery_limit", "unusable_id", "internal_error"} <= used
    # A document that is refused for now is tried again; documents in the inbox belong to no batch.
    unseen = {"queue_full", "queue_paused", "structure_check_unavailable", "batch_closed"}
    unseen |= {"invalid_line", "unusable_letter"}  # of files for batches and of dead letters
    assert used - unseen <= listed, used - unseen - listed


def rejection_codes() -> set[str]:
    """Return the codes with which the producer and a worker refuse jobs."""
    files = [path for part in ("producer", "worker/jobs") for path in (ROOT / part).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and is_rejection(node.func)]
    words = [word.value for call in calls for word in call.keywords if word.arg == "code"]
    codes = {str(word.value) for word in words if isinstance(word, ast.Constant)}
    kinds: list[type] = [JobRejected, *JobRejected.__subclasses__(), *QueueFull.__subclasses__()]
    for kind in kinds:
        codes |= set(re.findall(r'code(?:: str = |=)"(\w+)"', inspect.getsource(kind)))
    return codes


def is_rejection(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id == "JobRejected"


def test_the_programs_compile(tmp_path: Path) -> None:
    checks = {"ruby": ["ruby", "-c"], "go": ["gofmt", "-e"]}
    found = {name: words for name, words in checks.items() if shutil.which(words[0])}
    if not found:
        pytest.skip("neither ruby nor gofmt is installed")
    for name, words in found.items():
        file = tmp_path / f"program.{name}"
        file.write_text(block(name))
        done = subprocess.run([*words, str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_every_key_that_the_page_names_exists() -> None:
    known = (keys.INBOX, keys.job(""), keys.dead(""), keys.channel(""))
    named = re.findall(r"batchmill:[a-z_]+:?", PAGE)
    assert {name for name in named if not name.startswith(known)} == set()
