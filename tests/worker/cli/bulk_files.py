"""Input and output files of bulk runs, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from batchmill.worker.engine_host.stub_output import stub_text

from ..command_line import CommandResult, call
from ..conftest import Mill, expected_tokens

#: A stub engine that does not slow the run down.
FAST = {"step_time_s": 0.0, "max_num_seqs": 256}


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bulk(mill: Mill, *arguments: object) -> CommandResult:
    """Run the command in this process, with its files in the mill's folder."""
    output = mill.folder / "out.jsonl"
    errors = mill.folder / "err.jsonl"
    files = ("-o", str(output), "--errors", str(errors), "--broker-url", mill.url)
    return call("bulk", *map(str, arguments), *files)


def output_of(mill: Mill) -> list[dict[str, Any]]:
    return read_lines(mill.folder / "out.jsonl")


def errors_of(mill: Mill) -> dict[str, dict[str, Any]]:
    return {line["custom_id"]: line["error"] for line in read_lines(mill.folder / "err.jsonl")}


def text_of(prompt: str, num_tokens: int, seed: int = 7) -> str:
    return stub_text(expected_tokens(prompt, num_tokens, seed))
