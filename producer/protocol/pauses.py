"""Pauses of queues, tenants and endpoints: the value, and how it is written in Redis."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from batchmill.producer.moments import moment


class PauseKind(StrEnum):
    """Kind of a paused thing."""

    #: The jobs of a model in one class.
    QUEUE = "queue"
    #: The jobs of a tenant, in all queues.
    TENANT = "tenant"
    #: The webhook events of an endpoint.
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class Pause:
    """A queue, tenant or endpoint that an operator has paused."""

    kind: PauseKind
    #: Name of the queue or tenant; of an endpoint, tenant and URL with a space between.
    name: str
    since_ms: int
    #: Who paused it, and why; for people.
    by: str = ""
    reason: str = ""
    #: New jobs are refused meanwhile, instead of waiting.
    refuses: bool = False

    @property
    def since(self) -> datetime:
        """When it was paused, in UTC."""
        return moment(self.since_ms)

    def describe(self) -> str:
        """Return a sentence about the pause, without a full stop."""
        since = self.since.isoformat(timespec="seconds")
        by = f" by {self.by}" if self.by else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.kind.value} {self.name} is paused since {since}{by}{reason}"


def pause_among(pauses: Iterable[Pause], queue: str, tenant: str) -> Pause | None:
    """Return the pause that keeps jobs of a queue and a tenant waiting; None without one."""
    places = {(PauseKind.QUEUE, queue), (PauseKind.TENANT, tenant)}
    return next((pause for pause in pauses if (pause.kind, pause.name) in places), None)


def joined_pauses(found: Iterable[Iterable[Pause]]) -> list[Pause]:
    """Return the pauses of several brokers, each once, oldest first."""
    pauses: dict[tuple[PauseKind, str], Pause] = {}
    for pause in (pause for some in found for pause in some):
        place = (pause.kind, pause.name)
        pauses[place] = min(pause, pauses.get(place, pause), key=lambda each: each.since_ms)
    return sorted(pauses.values(), key=lambda pause: (pause.since_ms, pause.kind, pause.name))


def read_pauses(fields: Mapping[bytes, bytes]) -> list[Pause]:
    """Return all pauses, oldest first, without fields that batchmill did not write."""
    found = (read_pause(field, value) for field, value in fields.items())
    pauses = [pause for pause in found if pause is not None]
    return sorted(pauses, key=lambda pause: (pause.since_ms, pause.kind, pause.name))


def read_pause(field: bytes, value: bytes) -> Pause | None:
    """Return a pause as it is stored; None if batchmill did not write the field.

    A pause with other data is in force all the same: its time is then 0.
    """
    kind, _, name = field.decode(errors="backslashreplace").partition(":")
    if kind not in tuple(PauseKind) or not name:
        return None
    data: object = None
    with contextlib.suppress(ValueError):
        data = json.loads(value)
    fields = data if isinstance(data, dict) else {}
    since = str(fields.get("since_ms", ""))
    return Pause(
        PauseKind(kind),
        name,
        int(since) if since.isdecimal() and len(since) < 15 else 0,
        str(fields.get("by", "")),
        str(fields.get("reason", "")),
        fields.get("refuses") is True,
    )
