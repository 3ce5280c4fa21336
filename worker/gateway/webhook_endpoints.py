"""`/v1/webhook_endpoints`: receivers that a tenant registers for types of events."""

from __future__ import annotations

from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer.errors import BrokerUnavailable, ReceiverRefused
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.store import receivers
from batchmill.producer.store.api_keys import ApiKey
from batchmill.producer.store.receivers import EVENT_TYPES, MAX_RECEIVERS, Receiver
from batchmill.producer.webhook.secret_list import valid_secrets
from batchmill.worker.webhooks.reasons import explain
from batchmill.worker.webhooks.receiver_test import send_sample

from .api_errors import DO_NOT_RETRY, ApiError, invalid, not_found
from .backend import Backend
from .caller import identify, require_scope
from .completion_request import read_flag
from .files import page, page_limit
from .request_body import read_json
from .shard_stores import Work

Value = TypeVar("Value")
_FIELDS = ("name", "url", "event_types")


async def list_event_types(request: Request) -> Response:
    """Serve `GET /v1/webhook_event_types`."""
    await _caller(request)
    return JSONResponse({"object": "list", "data": list(EVENT_TYPES)})


async def create_endpoint(request: Request) -> Response:
    """Serve `POST /v1/webhook_endpoints`; only this response has the secret."""
    backend, key = await _caller(request)
    fields = await _read_fields(request, backend)
    if missing := [name for name in _FIELDS if name not in fields]:
        raise invalid(f"{missing[0]} is missing", missing[0])
    policy = backend.settings.target_policy
    receiver, secret = _checked(lambda: receivers.make_receiver(**fields, policy=policy))
    call = receivers.create_receiver(key.tenant, receiver, receivers.new_secret_value(secret))
    if not all(await _everywhere(backend, lambda store: store.run_confirmed(call))):
        undo = receivers.delete_receiver(key.tenant, receiver.id)
        await _everywhere(backend, lambda store: store.read(undo))
        raise ApiError(
            400,
            f"the tenant has {MAX_RECEIVERS} webhook endpoints, which is the limit; delete one",
            code="too_many_receivers",
        )
    return JSONResponse({**receiver.model_dump(mode="json"), "signing_secret": secret})


async def list_endpoints(request: Request) -> Response:
    """Serve `GET /v1/webhook_endpoints`: newest first."""
    backend, key = await _caller(request)
    query = request.query_params
    limit = page_limit(query.get("limit"), MAX_RECEIVERS, 100)
    load = receivers.load_receivers(key.tenant)
    parts = await backend.shards.each(lambda store: store.read(load))
    found = receivers.joined_receivers(parts.values)
    if (after := query.get("after")) is not None:
        ids = [receiver.id for receiver in found]
        if after not in ids:
            raise invalid("after must be the id of a webhook endpoint in the list", "after")
        found = found[ids.index(after) + 1 :]
    data = [receiver.model_dump(mode="json") for receiver in found[:limit]]
    return JSONResponse(page(data, has_more=len(found) > limit, missing=parts.missing))


async def get_endpoint(request: Request) -> Response:
    """Serve `GET /v1/webhook_endpoints/{endpoint_id}`."""
    backend, key = await _caller(request)
    receiver, _ = await _find(request, backend, key)
    return JSONResponse(receiver.model_dump(mode="json"))


async def update_endpoint(request: Request) -> Response:
    """Serve `POST /v1/webhook_endpoints/{endpoint_id}`."""
    backend, key = await _caller(request)
    receiver, _ = await _find(request, backend, key)
    changes = await _read_fields(request, backend)
    policy = backend.settings.target_policy
    changed = _checked(lambda: receivers.changed_receiver(receiver, changes, policy))
    put = receivers.put_receiver(key.tenant, changed)
    await _everywhere(backend, lambda store: store.read(put))
    return JSONResponse(changed.model_dump(mode="json"))


async def delete_endpoint(request: Request) -> Response:
    """Serve `DELETE /v1/webhook_endpoints/{endpoint_id}`."""
    backend, key = await _caller(request)
    receiver, _ = await _find(request, backend, key)
    delete = receivers.delete_receiver(key.tenant, receiver.id)
    await _everywhere(backend, lambda store: store.read(delete))
    kind = "webhook_endpoint.deleted"
    return JSONResponse({"id": receiver.id, "object": kind, "deleted": True})


async def rotate_secret(request: Request) -> Response:
    """Serve `POST …/rotate_secret`; the old secret ends at once, or signs for another day."""
    backend, key = await _caller(request)
    receiver, secrets = await _find(request, backend, key)
    fields = await read_json(request, backend.settings)
    keeps_old = read_flag(fields, "keep_old_secret_active_for_24_hours")
    _refuse_unknown(fields, ())
    overlap_s = receivers.OVERLAP_S if keeps_old else 0
    changed, secret, value = receivers.rotated(receiver, secrets, overlap_s=overlap_s)
    call = receivers.put_secrets(key.tenant, changed, value)
    await _everywhere(backend, lambda store: store.run_confirmed(call))
    return JSONResponse({**changed.model_dump(mode="json"), "signing_secret": secret})


async def test_endpoint(request: Request) -> Response:
    """Serve `POST …/test`: send a signed sample at once, and return the receiver's status."""
    backend, key = await _caller(request)
    receiver, secrets = await _find(request, backend, key)
    fields = await read_json(request, backend.settings)
    event_type = fields.pop("event_type", None)
    _refuse_unknown(fields, ())
    if event_type not in EVENT_TYPES:
        raise invalid(f"event_type must be one of {', '.join(EVENT_TYPES)}", "event_type")
    policy = backend.settings.target_policy
    outcome = await send_sample(receiver.url, event_type, policy, valid_secrets(secrets))
    if outcome.status is None:
        raise ApiError(
            502,
            f"the webhook endpoint sent no response: {explain(outcome.reason, receiver.url)}",
            code="webhook_not_reached",
            headers=DO_NOT_RETRY,
        )
    return JSONResponse(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": receiver.id,
            "event_type": event_type,
            "status_code": outcome.status,
            "success": True,
        }
    )


async def _caller(request: Request) -> tuple[Backend, ApiKey]:
    """Return the caller: only an admin may send the ids of all jobs of a tenant somewhere."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "admin")
    return backend, key


async def _find(request: Request, backend: Backend, key: ApiKey) -> tuple[Receiver, str]:
    receiver_id = request.path_params["endpoint_id"][:200]
    read = receivers.find_receiver(key.tenant, receiver_id)
    found, away = await backend.shards.first(lambda store: store.read(read))
    if found is not None:
        return found
    if away:
        told = f"shard {', '.join(away)} does not reply, and no other one has the endpoint"
        raise BrokerUnavailable(told).of_shards(away)
    raise not_found("webhook endpoint", receiver_id)


async def _everywhere(backend: Backend, work: Work[Value]) -> list[Value]:
    """Change an endpoint in all shards: each sends the events of its own jobs.

    Raises:
        ApiError: a shard does not reply; nothing was changed, unless it went away just now.
    """
    ping = Read(lambda pipeline: pipeline.ping(), list)
    away = (await backend.shards.each(lambda store: store.read(ping))).missing
    if away:
        raise ApiError(
            503,
            "webhook endpoints are kept in every shard, and they can be changed once shard "
            f"{' and '.join(away)} replies",
            code="broker_unavailable",
            headers={"retry-after": "5"},
        )
    return await backend.shards.all(work)


async def _read_fields(request: Request, backend: Backend) -> dict[str, Any]:
    fields = await read_json(request, backend.settings)
    _refuse_unknown(fields, _FIELDS)
    for name in ("name", "url"):
        if name in fields and not isinstance(fields[name], str):
            raise invalid(f"{name} must be a text", name)
    types = fields.get("event_types", [])
    if not isinstance(types, list) or not all(isinstance(each, str) for each in types):
        raise invalid("event_types must be a list of texts", "event_types")
    if "event_types" in fields:
        fields["event_types"] = tuple(types)
    return fields


def _refuse_unknown(fields: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := fields.keys() - set(known):
        name = min(unknown)[:100]
        raise invalid(f"{name} is not a field of this request", name)


def _checked(work: Any) -> Any:
    try:
        return work()
    except ReceiverRefused as error:
        raise invalid(str(error), error.param) from None
