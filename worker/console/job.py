"""One job: its timeline, its settings, and its texts for those who may see them."""

from __future__ import annotations

import json
from typing import Any

from batchmill.producer.errors import UnknownJob
from batchmill.producer.progress import JobProgress
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import JobRecord
from batchmill.producer.protocol.replies import CancelStatus
from batchmill.producer.results import JobResult, JobStatus
from batchmill.producer.store.deliveries import Deliveries

from .decision import asked_questions
from .explain_report import explanation_page
from .heat_map import HeatMap, heat_maps
from .media import content_text, media_notes
from .timeline import timeline
from .visit import ConsoleError, Page, Redirect, Reply, Report, Visit, not_found, require

#: Fields of a document that are texts, or may quote some: shown with the right `texts` only.
_INPUT = ("prompt", "messages", "tools", "decision")
#: Fields that say nothing about the content.
_PLAIN_TEXTS = frozenset({"model", "priority", "tenant", "ignore_eos", "tool_choice"})


def show_job(visit: Visit) -> Reply:
    """Show a job of the viewer."""
    status = _status(visit)
    store = visit.site.stores.of_job(status.id)
    record = store.load(status.id)
    if record is None:
        raise not_found("job", status.id)
    events = Deliveries(store).of_job(status.id)
    result = _result(record)
    questions = asked_questions(_document(record), result) if visit.viewer.sees_texts else []
    values: dict[str, Any] = {
        "job": status,
        "record": record,
        "result": result,
        "timeline": timeline(status, events),
        "events": events,
        "progress": _progress(visit, status),
        "settings": _settings(record, sees_texts=visit.viewer.sees_texts),
        "input": _input(record, media_notes(store, status.id)) if visit.viewer.sees_texts else [],
        "questions": questions,
        "outputs": [] if questions or not visit.viewer.sees_texts else _outputs(result),
    }
    return Page("job.html", values)


def show_explanation(visit: Visit) -> Reply:
    """Show the report of an explained job, the page that `batchmill explain` writes."""
    status = _status(visit)
    require(visit.viewer.sees_texts, "texts")
    record = visit.site.stores.of_job(status.id).load(status.id)
    result = None if record is None else _result(record)
    if result is None or result.explain is None:
        raise not_found("explanation of the job", status.id)
    return Report(explanation_page(result))


def change_job(visit: Visit) -> Reply:
    """Cancel, retry or erase a job."""
    require(visit.viewer.may_change_jobs, "submit")
    status, client = _status(visit), visit.site.client
    place = f"/jobs/{status.id}"
    match visit.form.get("action"):
        case "cancel":
            outcome = client.cancel(status.id).status
            if outcome is CancelStatus.ALREADY_TERMINAL:
                return Redirect(place, "ended")
            return Redirect(
                place, "stopping" if outcome is CancelStatus.CANCELLING else "cancelled"
            )
        case "retry":
            client.retry(status.id)
            return Redirect(place, "retried")
        case "forget":
            client.forget(status.id)
            return Redirect("/jobs", "forgotten")
    raise ConsoleError(400, "The form has no action that this page knows.")


def _status(visit: Visit) -> JobStatus:
    """Return the job of a path.

    Raises:
        ConsoleError: there is none, or it belongs to another tenant.
    """
    job_id = visit.path["job_id"]
    if not keys.is_job_id(job_id):
        raise not_found("job", job_id)
    try:
        status = visit.site.client.status(job_id)
    except UnknownJob:
        raise not_found("job", job_id) from None
    if not visit.viewer.sees(status.tenant):
        raise not_found("job", job_id)
    return status


def _progress(visit: Visit, status: JobStatus) -> JobProgress | None:
    if status.state.is_terminal:
        return None
    try:
        return visit.site.client.progress(status.id)
    except UnknownJob:
        return None


def _result(record: JobRecord) -> JobResult | None:
    """Return the result of a job; None if it has none, or batchmill did not write it."""
    try:
        return None if record.result is None else JobResult.model_validate_json(record.result)
    except ValueError:
        return None


def _document(record: JobRecord) -> dict[str, Any]:
    try:
        document = json.loads(record.document)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _settings(record: JobRecord, *, sees_texts: bool) -> list[tuple[str, str]]:
    """Return the fields of a job but its input; without the right, only what tells nothing."""
    fields = {
        name: value
        for name, value in sorted(_document(record).items())
        if name not in _INPUT and value not in (None, [], {})
    }
    return [
        (name, _shown(value))
        for name, value in fields.items()
        if sees_texts or isinstance(value, bool | int | float) or name in _PLAIN_TEXTS
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _input(record: JobRecord, media: list[str]) -> list[tuple[str, str]]:
    """Return the parts of a job's input: who says it, and the text; of media, what is noted."""
    notes = iter(media)
    if record.unreadable is not None:
        return [("sealed", str(record.unreadable))]
    document = _document(record)
    parts: list[tuple[str, str]] = []
    prompt, messages, tools, decision = (document.get(name) for name in _INPUT)
    if prompt is not None:
        parts.append(("prompt", prompt if isinstance(prompt, str) else _pretty(prompt)))
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            continue
        role, content = str(message.get("role", "message")), message.get("content")
        if isinstance(content, list):
            content = content_text(content, notes)
            message = {**message, "content": content}
        given = {name for name, value in message.items() if value is not None}
        is_plain = isinstance(content, str) and given <= {"role", "content"}
        parts.append((role, str(content) if is_plain else _pretty(message)))
    if tools:
        parts.append(("tools", _pretty(tools)))
    if decision:
        parts.append(("decision", _pretty(decision)))
    return parts


def _outputs(result: JobResult | None) -> list[tuple[Any, HeatMap | None]]:
    """Return each sample, with its heat map if log probabilities were asked for."""
    if result is None:
        return []
    return list(zip(result.completions, heat_maps(result), strict=True))


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
