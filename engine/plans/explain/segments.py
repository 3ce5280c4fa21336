"""The parts of an input that may be left out: documents, paragraphs, lines or sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any, Final

from batchmill.engine.plans.plan import PlannedJob
from batchmill.engine.text.chat import Chat, text_of

#: Parts of one input; a longer input has larger ones.
MAX_SEGMENTS: Final = 32
#: Parts of one text that are looked at one by one, before they are joined.
_MAX_PARTS: Final = 128
_SEPARATORS: Final = (r"\n[ \t]*\n\s*", r"\n+", r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of one text of the input."""

    #: `prompt`, `messages.<n>` or `documents.<n>`.
    source: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the input: neighbouring spans, one of each text."""

    spans: tuple[Span, ...]

    @property
    def source(self) -> str:
        """The text that it is of, or the first and the last of several."""
        first, last = self.spans[0].source, self.spans[-1].source
        return first if first == last else f"{first} to {last}"

    @property
    def text(self) -> str:
        """All of its text."""
        return "\n\n".join(each.text for each in self.spans)

    def joined(self, following: Segment) -> Segment:
        """Return this segment together with the one that follows it."""
        last, first = self.spans[-1], following.spans[0]
        if last.source != first.source:
            return Segment(self.spans + following.spans)
        both = Span(last.source, last.start, first.stop, last.text + first.text)
        return Segment((*self.spans[:-1], both, *following.spans[1:]))


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
        spans = [span for place in removed for span in self.segments[place].spans]
        for span in sorted(spans, key=lambda each: -each.start):
            text = texts[span.source]
            texts[span.source] = text[: span.start] + text[span.stop :]
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
                segments.append(Segment((Span(source, 0, len(text), text),)))
                continue
            parts = _parts(text)
            if sources and source == sources[-1]:
                parts = parts[:-1]
            segments += [
                Segment((Span(source, *span, text[slice(*span)]),)) for span in _grouped(parts)
            ]
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


def _grouped(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans of at most `_MAX_PARTS` groups of neighbours, of about as many parts."""
    size = -(-len(parts) // _MAX_PARTS)
    groups = [parts[start : start + size] for start in range(0, len(parts), size or 1)]
    return [(group[0][0], group[-1][1]) for group in groups]


def _limited(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours until there are not too many, of one text before those of several."""
    found = list(segments)
    while len(found) > 2 * _MAX_PARTS:  # so that a hostile input cannot hold up the engine below
        pairs = zip_longest(found[::2], found[1::2])
        found = [first if second is None else first.joined(second) for first, second in pairs]
    while len(found) > MAX_SEGMENTS:
        sizes = [_joined_size(first, second) for first, second in pairwise(found)]
        at = min(range(len(sizes)), key=sizes.__getitem__)
        found[at : at + 2] = [found[at].joined(found[at + 1])]
    return found


def _joined_size(first: Segment, second: Segment) -> tuple[int, int]:
    """Return the spans and the characters of two segments together."""
    is_one = first.spans[-1].source == second.spans[0].source
    spans = first.spans + second.spans
    return len(spans) - is_one, sum(each.stop - each.start for each in spans)
