"""Putting lines that share a long prefix next to each other, within a bounded window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.line import BulkLine

#: Lines looked at together, and the most characters of prompts among them.
WINDOW_LINES = 2000
WINDOW_CHARS = 16 << 20
#: A shared prefix of fewer characters is less than a few blocks of the cache: not worth moving for.
MIN_SHARED_CHARS = 256
#: More of a prompt is not compared.
_KEY_CHARS = 4096


def with_prefixes_adjacent(lines: Iterable[BulkLine]) -> Iterator[BulkLine]:
    """Yield the lines, those of a window that share a prefix one after the other.

    A group comes at the place of its first line; lines that share nothing keep their order.
    """
    window: list[BulkLine] = []
    num_chars = 0
    for line in lines:
        window.append(line)
        num_chars += 0 if line.job is None else _num_chars(line.job)
        if len(window) >= WINDOW_LINES or num_chars >= WINDOW_CHARS:
            yield from group(window)
            window, num_chars = [], 0
    yield from group(window)


def group(window: list[BulkLine]) -> list[BulkLine]:
    """Return a window's lines in the order in which they are to be sent."""
    keyed = sorted((_key(line), line.number, line) for line in window)
    groups: list[list[BulkLine]] = []
    last = None
    for key, _, line in keyed:
        if last is not None and len(key) >= MIN_SHARED_CHARS and _share(last, key):
            groups[-1].append(line)
        else:
            groups.append([line])
        last = key
    groups.sort(key=lambda lines: min(line.number for line in lines))
    return [line for lines in groups for line in lines]


def _share(a: str, b: str) -> bool:
    return a[:MIN_SHARED_CHARS] == b[:MIN_SHARED_CHARS]


def _key(line: BulkLine) -> str:
    """What the model reads first."""
    job = line.job
    if job is None:
        return ""
    if job.messages is not None:
        text = "\0".join(f"{message.role}\0{message.content or ''}" for message in job.messages[:8])
        return text[:_KEY_CHARS]
    prompt = job.prompt or ""
    return prompt[:_KEY_CHARS] if isinstance(prompt, str) else str(prompt[: _KEY_CHARS // 4])


def _num_chars(job: GenerationJob) -> int:
    if job.messages is not None:
        return job.num_chat_bytes
    return len(job.prompt or "")
