"""Hook of the documentation site: the reference of job fields, results and error codes.

The pages are made from the models and from the registry of codes, so that they say what the code
does.
"""

from __future__ import annotations

import inspect
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

JOBS_PAGE = "reference/jobs.md"
RESULTS_PAGE = "reference/results.md"
ERRORS_PAGE = "reference/errors.md"
#: Constraints of a schema, and how a reader writes them.
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} entries",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for page, content in (
        (JOBS_PAGE, jobs_page()),
        (RESULTS_PAGE, results_page()),
        (ERRORS_PAGE, errors_page()),
    ):
        files.append(File.generated(config, page, content=content))
    return files


def jobs_page() -> str:
    """Return the reference of a job's fields."""
    from batchmill.producer import GenerationJob, Message, RetryPolicy
    from batchmill.producer.job.chat import ChatFields, Document, Function, Tool
    from batchmill.producer.job.controls import SamplingControls
    from batchmill.producer.job.document_schema import job_schema

    schema = job_schema()
    lines = [
        "# Fields of a job",
        "",
        "What `submit` takes: in Python by name, and in JSON as a document of",
        "`schema/job.schema.json`. Exactly one of `prompt` and `messages` is given. Every other",
        "field may be left out or null. Names in brackets are accepted as well.",
        "",
    ]
    for title, owner in (
        ("The job", GenerationJob),
        ("Chat", ChatFields),
        ("Controls of generation", SamplingControls),
    ):
        lines += [f"## {title}", "", *_table(owner, schema["properties"], GenerationJob), ""]
    for model in (Message, Tool, Function, Document, RetryPolicy):
        properties = schema["$defs"][model.__name__]["properties"]
        lines += [f"## {model.__name__}", "", *_table(model, properties, model), ""]
    return "\n".join(lines)


def results_page() -> str:
    """Return the reference of results, status and progress."""
    from batchmill.producer import (
        BatchStatus,
        JobError,
        JobProgress,
        JobResult,
        JobStatus,
        Metrics,
        ProgressSummary,
        Usage,
    )
    from batchmill.producer.results import Completion

    lines = ["# Results, status and progress", "", "What clients return and records hold.", ""]
    for model in (JobResult, Completion, Usage, Metrics, JobError, JobStatus):
        lines += _section(model)
    for model in (JobProgress, ProgressSummary, BatchStatus):
        lines += _section(model)
    return "\n".join(lines)


def _section(model: Any) -> list[str]:
    properties = model.model_json_schema(mode="serialization")["properties"]
    doc = inspect.cleandoc(model.__doc__ or "")
    rows = [*_table(model, properties, model), *_property_rows(model)]
    return [f"## {model.__name__}", "", doc, "", *rows, ""]


def _property_rows(model: Any) -> list[str]:
    """Return the properties of a model, which only Python has, as rows of its table."""
    rows = []
    for name, value in vars(model).items():
        if isinstance(value, property) and value.fget is not None:
            kind = str(inspect.signature(value.fget).return_annotation).replace("|", "or")
            meaning = " ".join(inspect.cleandoc(value.__doc__ or "").split())
            rows.append(f"| `{name}` | in Python: {kind} | | {meaning} |")
    return rows


def errors_page() -> str:
    """Return the reference of error codes."""
    from batchmill.producer import errors
    from batchmill.worker.error_codes import ALL_ERROR_CODES

    classes: dict[str, list[str]] = {}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.BatchmillError):
            classes.setdefault(getattr(kind, "code", ""), []).append(name)
    lines = [
        "# Error codes",
        "",
        "A code is the same in Python (`error.code`), in the JSON of a command (`--json`), in",
        "records, results and webhooks (`error.code`), and at the beginning of a dead letter's",
        "reason. *Again* says whether the same call or job may succeed later without a change.",
        "",
        "| code | means | what to do | again | where |",
        "|---|---|---|---|---|",
    ]
    for each in ALL_ERROR_CODES:
        named = "".join(f"<br>`{name}`" for name in classes.get(each.code, ()))
        again = "yes" if each.retryable else "no"
        lines.append(
            f"| `{each.code}`{named} | {each.meaning} | {each.remedy} | {again} | "
            f"{', '.join(each.places)} |"
        )
    return "\n".join([*lines, "", *_delivery_reasons()])


def _delivery_reasons() -> list[str]:
    """Return the reasons of failed deliveries as a section."""
    from batchmill.worker.webhooks.reasons import all_reasons

    rows = [f"| `{reason}` | {text} |" for reason, text in sorted(all_reasons().items())]
    return [
        "## Reasons of failed deliveries",
        "",
        "An attempt to deliver a webhook that failed has one of these words, in `batchmill",
        "webhooks list` and `show`, in the log of the deliverer, and in its history. `http_` and a",
        "number is the status of the receiver's response; those with a remedy of their own are",
        "listed.",
        "",
        "| reason | means, and what to do |",
        "|---|---|",
        *rows,
        "",
    ]


def _table(owner: Any, properties: dict[str, Any], model: Any) -> list[str]:
    """Return the fields that a model defines itself as a table."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name in inspect.get_annotations(owner):
        if name not in model.model_fields:
            continue
        field, schema = model.model_fields[name], properties.get(name, {})
        aliases = [each for each in getattr(field.validation_alias, "choices", ()) if each != name]
        others = f" ({', '.join(f'`{each}`' for each in aliases)})" if aliases else ""
        default = field.get_default(call_default_factory=True)
        shown = "" if field.is_required() or default in (None, [], {}) else f"`{_json(default)}`"
        meaning = " ".join(str(field.description or "").split()).replace("|", r"\|")
        rows.append(f"| `{name}`{others} | {_type(schema)} | {shown} | {meaning} |")
    return rows


def _json(value: Any) -> str:
    import json

    return json.dumps(value, default=str)


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a JSON schema in words."""
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        words = dict.fromkeys(_type(choice) for choice in choices)
        return " or ".join(word for word in words if word not in ("null", ""))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return ", ".join(f"`{_json(value)}`" for value in schema["enum"] if value is not None)
    if "const" in schema:
        return f"`{_json(schema['const'])}`"
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type(schema.get('items', {})) or 'any'}"
    bounds = [text.format(schema[name]) for name, text in _BOUNDS.items() if name in schema]
    return ", ".join([kind, *bounds])
