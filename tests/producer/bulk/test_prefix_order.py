"""Lines of a bulk file that share a long prefix are sent one after the other."""

from __future__ import annotations

import itertools
import random

from batchmill.producer import GenerationJob, JobRejected
from batchmill.producer.bulk.prefix_order import (
    MIN_SHARED_CHARS,
    WINDOW_LINES,
    with_prefixes_adjacent,
)
from batchmill.producer.job.line import BulkLine, LineKind


def prefix(name: str) -> str:
    return name * MIN_SHARED_CHARS


def line(number: int, prompt: str) -> BulkLine:
    return BulkLine(number, f"c{number}", LineKind.TEXT, GenerationJob(prompt=prompt))


def numbers(lines: list[BulkLine]) -> list[int]:
    return [found.number for found in with_prefixes_adjacent(lines)]


def test_lines_of_one_prefix_follow_its_first_line() -> None:
    names = ["a", "b", "c", "a", "b", "a"]
    lines = [line(i, f"{prefix(name)} and {i}") for i, name in enumerate(names)]
    assert numbers(lines) == [0, 3, 5, 1, 4, 2]


def test_lines_that_share_too_little_keep_their_order() -> None:
    short = "x" * (MIN_SHARED_CHARS - 1)
    lines = [line(i, f"{short}{9 - i} goes on alike" + "y" * 300) for i in range(9)]
    assert numbers(lines) == list(range(9))


def test_chats_with_one_system_message_are_grouped() -> None:
    def chat(number: int, system: str) -> BulkLine:
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"question {number}"},
        ]
        job = GenerationJob.model_validate({"messages": messages})
        return BulkLine(number, "", LineKind.CHAT, job)

    lines = [chat(i, prefix("ab"[i % 2])) for i in range(6)]
    assert numbers(lines) == [0, 2, 4, 1, 3, 5]


def test_token_ids_are_grouped_like_text() -> None:
    ids = [list(range(1000, 1200)), list(range(2000, 2200))]
    lines = [
        BulkLine(i, "", LineKind.TEXT, GenerationJob(prompt=[*ids[i % 2], i])) for i in range(4)
    ]
    assert numbers(lines) == [0, 2, 1, 3]


def test_every_line_comes_once_and_stays_within_its_window() -> None:
    rng = random.Random(3)
    total = 2 * WINDOW_LINES + 100
    problem = JobRejected("wrong")
    lines = [
        line(i, f"{prefix(rng.choice('abcdef'))}{i}")
        if i % 7
        else BulkLine(i, "", LineKind.TEXT, None, problem)
        for i in range(total)
    ]
    order = numbers(lines)
    assert sorted(order) == list(range(total))
    for place, number in enumerate(order):
        assert place // WINDOW_LINES == number // WINDOW_LINES
    # In the order of the file five in six neighbours differ; now those beside wrong lines do.
    names = {i: (job.prompt or "")[0] if (job := lines[i].job) else "" for i in range(total)}
    changes = sum(names[a] != names[b] for a, b in itertools.pairwise(order))
    assert changes < total / 3
