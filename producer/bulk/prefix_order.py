"""Ordering lines so that those with a long common prefix are adjacent, in a bounded window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.line import BulkLine
from batchmill.producer.job.messages import Message, TextPart

#: Most lines in a window, and most characters of their prompts, with the pictures inside them.
WINDOW_LINES = 2000
WINDOW_CHARS = 16 << 20
#: A shorter common prefix is less than a few blocks of the KV cache: not worth moving a line for.
MIN_SHARED_CHARS = 256
#: Characters of a prompt that are compared.
_KEY_CHARS = 4096


def with_prefixes_adjacent(lines: Iterable[BulkLine]) -> Iterator[BulkLine]:
    """Yield the lines; within a window, lines with a common prefix follow each other.

    A group stands at the place of its first line; other lines keep their order.
    """
    window: list[BulkLine] = []
    num_chars = 0
    for line in lines:
        window.append(line)
        num_chars += 0 if line.job is None else _num_chars(line.job)
        if len(window) >= WINDOW_LINES or num_chars >= WINDOW_CHARS:
            yield from group_window(window)
            window, num_chars = [], 0
    yield from group_window(window)


def group_window(window: list[BulkLine]) -> list[BulkLine]:
    """Return a window's lines in the order in which they are submitted."""
    keyed = sorted((_key(line), line.number, line) for line in window)
    groups: list[list[BulkLine]] = []
    last = None
    for key, _, line in keyed:
        if last is not None and len(key) >= MIN_SHARED_CHARS and _has_common_prefix(last, key):
            groups[-1].append(line)
        else:
            groups.append([line])
        last = key
    groups.sort(key=lambda lines: min(line.number for line in lines))
    return [line for lines in groups for line in lines]


def _has_common_prefix(a: str, b: str) -> bool:
    return a[:MIN_SHARED_CHARS] == b[:MIN_SHARED_CHARS]


def _key(line: BulkLine) -> str:
    """Return the beginning of the text that the model reads."""
    job = line.job
    if job is None:
        return ""
    if job.messages is not None:
        text = "\0".join(
            f"{message.role}\0{_key_of_message(message)}" for message in job.messages[:8]
        )
        return text[:_KEY_CHARS]
    prompt = job.prompt or ""
    return prompt[:_KEY_CHARS] if isinstance(prompt, str) else str(prompt[: _KEY_CHARS // 4])


def _key_of_message(message: Message) -> str:
    """Return the text of a message, with the ids or URLs of its pictures and sounds."""
    texts = (
        part.text if isinstance(part, TextPart) else part.media or part.url or ""
        for part in message.parts
    )
    return "\n".join(texts)


def _num_chars(job: GenerationJob) -> int:
    if job.messages is not None:
        inline = (part.content for part in job.media if isinstance(part.content, bytes))
        return job.num_chat_bytes + sum(len(content) for content in inline)
    return len(job.prompt or "")
