"""What the checks of `batchmill doctor` report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    #: Works, but slower or without some part.
    WARNING = "warning"
    #: Does not work.
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    level: Level
    detail: str
    #: What to do; empty if there is nothing to do.
    remedy: str = ""
