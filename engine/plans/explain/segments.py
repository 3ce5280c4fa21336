"""The parts of an input that may be left out: documents, paragraphs, lines or sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from batchmill.engine.plans.plan import PlannedJob
from batchmill.engine.text.chat import Chat, text_of

#: Parts of one input; a longer input has larger ones.
MAX_SEGMENTS: Final = 32
_SEPARATORS: Final = (r"\n[ \t]*\n\s*", r"\n+", r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the input."""

    #: `prompt`, `messages.<n>` or `documents.<n>`.
    source: str
    start: int
    stop: int
    text: str


class ExplainedInput:
    """The input of a job, cut into segments. Its last part, mostly the question, always stays."""

    def __init__(self, job: PlannedJob) -> None:
        prompt = job.prompt
        self._tokenizer = job.engine.tokenizer
        self._chat = prompt if isinstance(prompt, Chat) else None
        self._texts: dict[str, str] = {}
        if isinstance(prompt, Chat):
            for place, message in enumerate(prompt.messages):
                self._texts[f"messages.{place}"] = text_of(message.get("content")) or ""
            for place, document in enumerate(prompt.documents or ()):
                self._texts[f"documents.{place}"] = document["text"]
        elif isinstance(prompt, str):
            self._texts["prompt"] = prompt
        else:
            self._texts["prompt"] = self._tokenizer.decode(
                list(prompt or ()), skip_special_tokens=False
            )
        self.segments = _limited(self._cut())

    def prompt_without(self, removed: Collection[int]) -> list[int]:
        """Return the tokens of the input without some segments."""
        texts = dict(self._texts)
        for place in sorted(removed, key=lambda each: -self.segments[each].start):
            segment = self.segments[place]
            text = texts[segment.source]
            texts[segment.source] = text[: segment.start] + text[segment.stop :]
        if self._chat is None:
            return self._tokenizer.encode(texts["prompt"])
        messages = [
            {**message, "content": texts[f"messages.{place}"]}
            for place, message in enumerate(self._chat.messages)
        ]
        documents = [
            {**document, "text": texts[f"documents.{place}"]}
            for place, document in enumerate(self._chat.documents or ())
            if texts[f"documents.{place}"]
        ]
        return self._tokenizer.apply_chat_template(
            replace(self._chat, messages=messages, documents=documents)
        )

    def _cut(self) -> list[Segment]:
        segments: list[Segment] = []
        sources = [name for name in self._texts if not name.startswith("documents")]
        for source, text in self._texts.items():
            if source.startswith("documents"):
                segments.append(Segment(source, 0, len(text), text))
                continue
            parts = _parts(text)
            if sources and source == sources[-1]:
                parts = parts[:-1]
            segments += [Segment(source, *span, text[slice(*span)]) for span in parts]
        return segments


def describe(segment: Segment, **figures: Any) -> dict[str, Any]:
    """Return a segment as a result has it."""
    return {"source": segment.source, "text": segment.text.strip(), **figures}


def _parts(text: str) -> list[tuple[int, int]]:
    """Return the spans of paragraphs; of one paragraph its lines; of one line its sentences."""
    for separator in _SEPARATORS:
        stops = [found.end() for found in re.finditer(separator, text)]
        starts = [0, *[stop for stop in stops if stop < len(text)]]
        if len(starts) > 1:
            return list(zip(starts, [*starts[1:], len(text)], strict=True))
    return [(0, len(text))] if text.strip() else []


def _limited(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours of one source until there are not too many."""
    joined = list(segments)
    while len(joined) > MAX_SEGMENTS:
        pairs = [
            place
            for place in range(len(joined) - 1)
            if joined[place].source == joined[place + 1].source
        ]
        if not pairs:
            return joined[:MAX_SEGMENTS]
        at = min(pairs, key=lambda place: joined[place + 1].stop - joined[place].start)
        first, second = joined[at], joined[at + 1]
        joined[at : at + 2] = [
            Segment(first.source, first.start, second.stop, first.text + second.text)
        ]
    return joined
