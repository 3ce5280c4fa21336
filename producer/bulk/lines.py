"""Parsing a record of a bulk file into a `BulkLine` with its job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from batchmill.producer.errors import BulkFileError, JobRejected
from batchmill.producer.files.record import Record
from batchmill.producer.files.source import RecordFile
from batchmill.producer.job.line import BulkLine, LineKind, check_custom_id, decision_fields
from batchmill.producer.job.pooled_requests import read_embedding_body, read_score_body
from batchmill.producer.job.validation import parse_job

from .prompts import Prompt


@dataclass(frozen=True, slots=True)
class LineSettings:
    """Settings of the command for all lines."""

    #: The model of every line, even if a line names another; None leaves it to the line.
    model: str | None = None
    #: Fields of a job that a line may override.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: Make the prompts from the record's columns; empty if records are requests.
    prompts: tuple[Prompt, ...] = ()
    #: Labels added to those of every line's job.
    tags: tuple[str, ...] = ()
    #: Fields of a request that are dropped.
    ignored: frozenset[str] = frozenset()
    #: Samples per line that have columns of their own; None if the output is not a table.
    max_samples: int | None = None
    #: Whether the table has a column for the probability of each option of a decision.
    with_probabilities: bool = False

    @property
    def num_lines_per_record(self) -> int:
        """Lines that each record becomes: one per prompt."""
        return len(self.prompts) or 1


def check_template(source: RecordFile, settings: LineSettings) -> None:
    """Reject a table without a template that it can fill, before every row fails.

    Raises:
        BulkFileError: it has no template, or the template asks for a column that is not there.
    """
    columns = source.columns
    if columns is None:
        return
    shown = ", ".join(columns) or "no column"
    if not settings.prompts:
        example = f"'Describe {{{columns[0] if columns else 'name'}}} in one line.' --chat"
        raise BulkFileError(
            f"{source.path} is a table with the columns {shown}, and a row is not a prompt by "
            f"itself: give --template, for example --template {example}"
        )
    used = dict.fromkeys(name for prompt in settings.prompts for name in prompt.columns)
    missing = [name for name in used if name not in columns]
    if missing:
        raise BulkFileError(
            f"the template asks for {', '.join(missing)}; {source.path} has the columns {shown}"
        )


def with_media(source: RecordFile, settings: LineSettings) -> LineSettings:
    """Return the settings for an input: where its pictures are, and which columns name them.

    Raises:
        BulkFileError: pictures are asked for without a chat.
    """
    prompts = []
    for prompt in settings.prompts:
        media = {**prompt.media, **source.media_columns}
        if media and not prompt.is_chat:
            raise BulkFileError("pictures and sounds need a chat: add --chat to the template")
        prompts.append(replace(prompt, media=media, folder=source.folder))
    return replace(settings, prompts=tuple(prompts))


def read_lines(record: Record, settings: LineSettings) -> Iterator[BulkLine]:
    """Yield the lines of a record, one per prompt."""
    for place in range(settings.num_lines_per_record):
        yield read_line(record, settings, place)


def read_line(record: Record, settings: LineSettings, place: int = 0) -> BulkLine:
    """Return a line of a record; an invalid record gives a line with its problem.

    Args:
        record: the record.
        settings: for all lines.
        place: of the prompt among several.
    """
    number = (record.number - 1) * settings.num_lines_per_record + place + 1
    prompt = settings.prompts[place] if settings.prompts else None
    kind, custom_id = LineKind.TEXT, _named(f"line-{record.line}", prompt)
    try:
        if record.data is None:
            raise JobRejected(record.problem, code="invalid_line")
        custom_id = _custom_id(record.data, custom_id, prompt)
        kind, fields = _fields(record.data, prompt, settings)
        named_model = fields.get("model")
        job = parse_job(_with_defaults(fields, settings))
        if settings.max_samples is not None and job.n > settings.max_samples:
            raise JobRejected(
                f"n is {job.n}, and the table has columns for {settings.max_samples}: give "
                f"--param n={job.n}",
                param="n",
            )
        return BulkLine(number, custom_id, kind, job, named_model=named_model)
    except JobRejected as error:
        return BulkLine(number, custom_id, kind, None, error)


def _named(custom_id: str, prompt: Prompt | None) -> str:
    return f"{custom_id}.{prompt.name}" if prompt is not None and prompt.name else custom_id


def _custom_id(data: Mapping[str, Any], otherwise: str, prompt: Prompt | None) -> str:
    custom_id = data.get("custom_id")
    if custom_id is None or custom_id == "":
        return otherwise
    if isinstance(custom_id, int) and prompt is not None:  # as typed tables have it
        custom_id = str(custom_id)
    return check_custom_id(_named(check_custom_id(custom_id), prompt))


def _fields(
    data: Mapping[str, Any], prompt: Prompt | None, settings: LineSettings
) -> tuple[LineKind, dict[str, Any]]:
    """Return the format of the result and the fields of the job."""
    if prompt is not None:
        try:
            return prompt.fields(data)
        except ValueError as error:
            raise JobRejected(str(error), code="invalid_line") from None
    if "body" in data or "url" in data:
        kind, fields = _from_openai(data)
    else:
        fields = {name: value for name, value in data.items() if name != "custom_id"}
        kind = LineKind.of_fields(fields)
    return kind, {name: value for name, value in fields.items() if name not in settings.ignored}


def _from_openai(data: Mapping[str, Any]) -> tuple[LineKind, dict[str, Any]]:
    unknown = data.keys() - {"custom_id", "method", "url", "body"}
    if unknown:
        raise JobRejected(f"{min(unknown)} is not part of a batch line", param=min(unknown))
    if data.get("method", "POST") != "POST":
        raise JobRejected("method: must be POST", param="method")
    try:
        kind = LineKind(str(data.get("url")))
    except ValueError:
        raise JobRejected(
            f"url: must be {' or '.join(LineKind)}; this version supports no other", param="url"
        ) from None
    body = data.get("body")
    if isinstance(body, dict) and kind in _POOLED:
        return kind, _POOLED[kind](body)[0]
    if kind is LineKind.DECIDE:
        if not isinstance(body, dict) or "questions" not in body:
            raise JobRejected(f"body: must be an object with questions for {kind}", param="body")
        return kind, decision_fields(body)
    wanted, other = ("messages", "prompt") if kind is LineKind.CHAT else ("prompt", "messages")
    if not isinstance(body, dict) or wanted not in body or other in body:
        raise JobRejected(f"body: must be an object with {wanted} for {kind}", param="body")
    return kind, dict(body)


_POOLED = {
    LineKind.EMBEDDINGS: read_embedding_body,
    LineKind.SCORE: read_score_body,
}


def _with_defaults(fields: dict[str, Any], settings: LineSettings) -> dict[str, Any]:
    if "idempotency_key" in fields:
        raise JobRejected(
            "idempotency_key: bulk sets it, so that a run can be resumed; leave it out",
            param="idempotency_key",
        )
    options, own = settings.defaults.get("embedding"), fields.get("embedding")
    if isinstance(options, dict) and isinstance(own, dict):
        fields = {**fields, "embedding": {**options, **own}}
    fields = {**settings.defaults, **fields}
    # A default max_tokens must give way to a line's max_completion_tokens.
    aliases = ("max_completion_tokens", "max_output_tokens", "max_new_tokens")
    if any(name in fields for name in aliases) and "max_tokens" in settings.defaults:
        del fields["max_tokens"]
    own = fields.get("tags", [])
    if settings.tags and isinstance(own, list):  # else the job's own check rejects it
        fields["tags"] = [*(tag for tag in settings.tags if tag not in own), *own]
    if settings.model is not None:
        fields["model"] = settings.model
    return fields
