"""The plans by the field of a job that asks for them, and the kinds of job that are served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from batchmill.engine.contract.beam_search import BEAM_SEARCH
from batchmill.engine.contract.explain import EXPLAIN
from batchmill.engine.contract.kinds import SECTIONS, Kind
from batchmill.engine.contract.selection import SELECT
from batchmill.engine.errors import RequestError
from batchmill.engine.lifecycle.pooled_intake import PoolingSupport

from .beam_search.plan import beam_plan
from .decision.plan import decision_plan
from .embedding import embedding_plan
from .explain.plan import explain_plan
from .plan import PlanMaker
from .scoring import scoring_plan
from .selection import selection_plan

#: The field of a job -> its plan.
PLANS: Final[Mapping[str, PlanMaker]] = {
    "decision": decision_plan,
    "embedding": embedding_plan,
    "scoring": scoring_plan,
    EXPLAIN: explain_plan,
    SELECT: selection_plan,
    BEAM_SEARCH: beam_plan,
}
#: What a model must compute for a kind of job, of `PoolingSupport.tasks`; one of them is enough.
_TASKS: Final[Mapping[Kind, frozenset[str]]] = {
    Kind.GENERATE: frozenset({"generate"}),
    Kind.DECIDE: frozenset({"generate"}),
    Kind.EMBED: frozenset({"embed"}),
    Kind.SCORE: frozenset({"embed", "score"}),
}


def served_kinds(support: PoolingSupport) -> tuple[str, ...]:
    """Return the kinds of job that an engine serves with a model."""
    tasks = frozenset(support.tasks)
    return tuple(
        kind.value
        for kind in Kind
        if tasks & _TASKS[kind] and (kind is Kind.GENERATE or SECTIONS[kind] in PLANS)
    )


def plan_maker(section: str, support: PoolingSupport) -> PlanMaker:
    """Return the maker of the plan that a field of a job asks for.

    Raises:
        RequestError: `unsupported_parameter`: this engine has none, or not with this model.
    """
    kinds = served_kinds(support)
    served = [SECTIONS[Kind(kind)] for kind in kinds if Kind(kind) in SECTIONS]
    if Kind.GENERATE.value in kinds:
        served += [EXPLAIN, SELECT, BEAM_SEARCH]
    if section not in served:
        raise RequestError(
            "unsupported_parameter",
            f"{section} is not served by this worker, which serves jobs of the kinds "
            f"{', '.join(kinds)}: send the job to a model or a worker that serves it",
        )
    return PLANS[section]
