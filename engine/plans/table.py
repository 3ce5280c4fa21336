"""The plans by the field of a job that asks for them, and the kinds of job that are served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from batchmill.engine.contract.kinds import SECTIONS, Kind
from batchmill.engine.errors import RequestError

from .plan import PlanMaker

#: The field of a job -> its plan.
PLANS: Final[Mapping[str, PlanMaker]] = {}


def served_kinds() -> tuple[str, ...]:
    """Return the kinds of job that this engine serves."""
    return tuple(kind.value for kind in Kind if kind is Kind.GENERATE or SECTIONS[kind] in PLANS)


def plan_maker(section: str) -> PlanMaker:
    """Return the maker of the plan that a field of a job asks for.

    Raises:
        RequestError: `unsupported_parameter`: this engine has none.
    """
    if section not in PLANS:
        raise RequestError(
            "unsupported_parameter",
            f"{section} is not served by this worker, which serves jobs of the kinds "
            f"{', '.join(served_kinds())}: send the job to a model or a worker that serves it",
        )
    return PLANS[section]
