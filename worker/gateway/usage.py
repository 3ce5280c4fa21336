"""`/v1/usage`: the tokens that the caller's tenant has used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer.store.usage_sums import Label, grouped, read_labels, usage_sums

from .api_errors import invalid
from .backend import Backend
from .caller import identify, require_scope

_DEFAULT_DAYS = 30
_PARAMS = ("start_date", "end_date", "group_by")


async def get_usage(request: Request) -> Response:
    """Serve `GET /v1/usage`: sums of a period, by day, key and model."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "read")
    query = request.query_params
    if unknown := set(query) - set(_PARAMS):
        name = min(unknown)
        raise invalid(f"{name[:100]} is unknown; there are {', '.join(_PARAMS)}", name[:100])
    labels = _labels(query.get("group_by", "day"))
    last = _day(query, "end_date") or datetime.now(UTC).date()
    first = _day(query, "start_date") or last - timedelta(days=_DEFAULT_DAYS - 1)
    try:
        read = usage_sums(first, last)
    except ValueError as error:
        raise invalid(str(error), "start_date") from None
    parts = await backend.shards.all(lambda store: store.read(read))  # or the sums were wrong
    found = [each for part in parts for each in part if each.tenant == key.tenant]
    return JSONResponse(
        {
            "object": "list",
            "tenant": key.tenant,
            "start_date": first.isoformat(),
            "end_date": last.isoformat(),
            "data": [each.to_dict() for each in grouped(found, labels)],
        }
    )


def _labels(text: str) -> list[Label]:
    try:
        return read_labels([name for name in text.split(",") if name])
    except ValueError as error:
        raise invalid(f"group_by {error}", "group_by") from None


def _day(query: Mapping[str, str], param: str) -> date | None:
    text = query.get(param)
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise invalid(f"{param} must be a day such as 2026-12-01", param) from None
