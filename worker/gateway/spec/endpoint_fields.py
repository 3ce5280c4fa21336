"""The bodies of webhook endpoints."""

from __future__ import annotations

from dataclasses import replace

from batchmill.producer.store.receivers import EVENT_TYPES

from .body import Body, mapped, taken
from .shapes import FLAG

_EVENT = {"enum": list(EVENT_TYPES)}
_FIELDS = (
    taken(
        "name",
        "your own name for it, 1 to 100 printable characters",
        {"type": "string", "minLength": 1, "maxLength": 100},
    ),
    taken(
        "url",
        "receives signed POSTs; https, unless the operator allows http",
        {"type": "string", "format": "uri", "maxLength": 2000},
    ),
    taken(
        "event_types",
        "types of events to send",
        {"type": "array", "items": _EVENT, "minItems": 1, "uniqueItems": True},
    ),
)
ENDPOINT = Body(
    "WebhookEndpointCreateRequest",
    fields=_FIELDS,
    required=("name", "url", "event_types"),
    takes_job=False,
)
ENDPOINT_CHANGES = replace(ENDPOINT, title="WebhookEndpointUpdateRequest", required=())
ROTATION = Body(
    "WebhookSecretRotateRequest",
    fields=(
        mapped(
            "keep_old_secret_active_for_24_hours",
            "the old secret signs beside the new one for a day; else it ends at once",
            FLAG,
        ),
    ),
    takes_job=False,
)
ENDPOINT_TEST = Body(
    "WebhookEndpointTestRequest",
    fields=(mapped("event_type", "type of the sample that is sent at once", _EVENT),),
    required=("event_type",),
    takes_job=False,
)
