"""`Body`: the fields that an API takes in the body of a request, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchmill.producer.job.document_schema import is_other_name, is_supported, job_schema
from batchmill.worker.gateway.api_errors import ApiError, invalid

Schema = Mapping[str, Any]


class Use(StrEnum):
    """What becomes of a field."""

    #: It is a field of the job, under this name.
    TAKEN = "taken"
    #: It becomes other fields of the job, or says how the response is sent.
    MAPPED = "mapped"
    #: It is accepted, and nothing depends on it.
    NO_EFFECT = "no effect"
    #: It is an error with its name, except for values that ask for nothing.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class BodyField:
    """One field that the gateway reads itself."""

    name: str
    use: Use
    #: A phrase of Markdown for the table of the API's page.
    meaning: str
    schema: Schema
    #: Of a refused field: the values that are the same as leaving it out.
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of an API's table of fields."""

    name: str
    use: Use
    meaning: str
    #: Of a refused field: the values that ask for nothing.
    neutral: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """The body of one kind of request.

    Attributes:
        title: name of its schema.
        fields: those that the gateway reads itself.
        own: further fields of the same API, which are those of a job.
        required: fields without which the request is refused.
        takes_job: whether every field of a job may be given.
        not_taken: fields of a job that this request has not.
    """

    title: str
    fields: tuple[BodyField, ...]
    own: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    takes_job: bool = True
    not_taken: tuple[str, ...] = ()

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given fields without those that have no effect or ask for nothing.

        Raises:
            ApiError: a field is not supported by this version.
        """
        kept = dict(given)
        for field in self.fields:
            if field.name not in kept:
                continue
            if field.use is Use.NO_EFFECT:
                del kept[field.name]
            elif field.use is Use.REFUSED and kept.pop(field.name) not in field.neutral:
                raise unsupported(field.name, remedy=field.meaning.replace("`", ""))
        return kept

    def rows(self) -> Iterator[Row]:
        """Yield the table of the fields, in the order of their names."""
        job = job_schema()["properties"]
        found = [Row(field.name, field.use, field.meaning, field.neutral) for field in self.fields]
        found += [_job_row(name, job) for name in self.own]
        order = list(Use)
        yield from sorted(found, key=lambda row: (order.index(row.use), row.name))

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema; `#/$defs/Job` is that of a job."""
        properties: dict[str, Any] = {}
        if self.takes_job:
            names = job_schema()["properties"].keys() - set(self.not_taken)
            properties = {name: {"$ref": f"#/$defs/Job/properties/{name}"} for name in names}
        properties |= {field.name: _field_schema(field) for field in self.fields}
        return {
            "type": "object",
            "title": self.title,
            "properties": properties,
            "required": list(self.required),
            "additionalProperties": False,
        }


def unsupported(what: str, param: str | None = None, *, remedy: str = "") -> ApiError:
    """Return the error for something that this version does not have; `remedy` is instead of it."""
    return invalid(
        f"{what} is not supported by this version: {remedy or 'leave it out'}",
        param or what,
        code="unsupported_parameter",
    )


def taken(name: str, meaning: str, schema: Schema) -> BodyField:
    """Return a field that the gateway reads as it is."""
    return BodyField(name, Use.TAKEN, meaning, schema)


def mapped(name: str, meaning: str, schema: Schema) -> BodyField:
    """Return a field that becomes something else."""
    return BodyField(name, Use.MAPPED, meaning, schema)


def no_effect(name: str, meaning: str) -> BodyField:
    """Return a field that is accepted and dropped."""
    return BodyField(name, Use.NO_EFFECT, meaning, {})


def refused(name: str, *neutral: Any, meaning: str = "") -> BodyField:
    """Return a field that is refused unless its value is null or one of `neutral`."""
    return BodyField(name, Use.REFUSED, meaning, {}, (None, *neutral))


def _field_schema(field: BodyField) -> dict[str, Any]:
    schema = {"enum": list(field.neutral)} if field.use is Use.REFUSED else dict(field.schema)
    about = "Not supported: only values without effect." if field.use is Use.REFUSED else ""
    text = field.meaning or about
    return schema | ({"description": text} if text else {})


def _job_row(name: str, job: Mapping[str, Any]) -> Row:
    about = " ".join(str(job[name]["description"]).split())
    if not is_supported(name):
        return Row(
            name, Use.REFUSED, about.partition(" Instead: ")[2].removesuffix("."), job[name]["enum"]
        )
    return Row(name, Use.MAPPED if is_other_name(name) else Use.TAKEN, about, ())
