"""What a job lets the model read, as a preview shows and counts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchmill.engine.contract.decision import text_of
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.messages import Message, TextPart

#: A text, or token ids.
Content = str | list[int]


def prompt_texts(job: GenerationJob) -> list[tuple[str, str]]:
    """Return the role and the text of each message; the prompt and other inputs have their name.

    A prompt has no role. Questions of a decision have their ids.
    """
    if job.decision is not None:
        questions = job.decision.questions.items()
        asked = [(name, each.model_dump_json(exclude_none=True)) for name, each in questions]
        return [("state", text_of(job.decision.state)), *asked]
    if job.messages is not None:
        return [(message.role, _text_of(message)) for message in job.messages]
    if job.scoring is not None and job.scoring.query is not None:
        return [("query", _shown(job.scoring.query)), *_named("input", job.scoring.input)]
    if job.section is not None:
        return _named("input", [each for _, each in contents(job)])
    return [("", _shown(job.prompt or ""))]


def contents(job: GenerationJob) -> Iterator[tuple[int, Content]]:
    """Yield how often each content is read, and the content.

    The state of a decision is read once: its questions share it.
    """
    if job.decision is not None:
        yield 1, text_of(job.decision.state)
        for question in job.decision.questions.values():
            yield job.decision.num_prompts_of(question), question.model_dump_json(exclude_none=True)
    elif job.embedding is not None:
        yield from ((1, each) for each in job.embedding.input)
    elif job.scoring is not None:
        if job.scoring.query is not None:
            yield len(job.scoring.input), job.scoring.query
        yield from ((1, each) for each in job.scoring.input)
    elif job.prompt is not None:
        yield 1, job.prompt
    else:
        yield from ((1, text) for _, text in prompt_texts(job))


def _named(name: str, given: Sequence[Content]) -> list[tuple[str, str]]:
    return [(name, _shown(each)) for each in given]


def _shown(content: Content) -> str:
    return content if isinstance(content, str) else f"{len(content)} token ids"


def _text_of(message: Message) -> str:
    """Return the text of a message, and the kind of each picture and sound."""
    shown = (
        part.text if isinstance(part, TextPart) else f"[{part.type}]" for part in message.parts
    )
    return "\n".join(shown)
