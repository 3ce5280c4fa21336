"""`Visit` and `Page`: what a page function gets and returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchmill.producer.store.every_shard import EveryShard
from batchmill.worker.service_errors import ServiceError

from .site import Site
from .viewer import Viewer


class ConsoleError(ServiceError):
    """A page that says what is wrong.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a viewer."""

    site: Site
    viewer: Viewer
    #: All shards, or the one broker; the page names those that do not reply.
    shards: EveryShard
    #: Parts of the path, the query, and the fields of a form.
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, str] = field(default_factory=dict)

    def given(self, name: str) -> str | None:
        """Return a field of the query; None if it is missing or empty."""
        return self.query.get(name, "").strip() or None


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its template, and what the template shows."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Redirect:
    """Another page, to which the browser goes after a form."""

    path: str
    #: A key of `notices.NOTICES`.
    done: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """A file."""

    name: str
    media_type: str
    content: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Report:
    """A page that stands for itself, with its own styles and without the console's parts."""

    html: str


Reply = Page | Redirect | Download | Report


def not_found(what: str, name: str) -> ConsoleError:
    """Return the error for what does not exist, or belongs to another tenant."""
    return ConsoleError(404, f"There is no {what} {name[:200]!r}.")


def require(is_allowed: bool, scope: str) -> None:
    """Refuse an action that the key does not allow.

    Raises:
        ConsoleError: it does not.
    """
    if not is_allowed:
        raise ConsoleError(403, f"This needs an API key with the right {scope!r}.")
