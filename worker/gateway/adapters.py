"""OpenAI's way to name a LoRA adapter: as the model of a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchmill.producer.store.adapters import RegisteredAdapter


def resolve_model(
    fields: Mapping[str, Any],
    adapters: Mapping[str, RegisteredAdapter],
    served: Collection[str] = (),
) -> Mapping[str, Any]:
    """Return fields in which a model that names an adapter is the adapter of its own model.

    Args:
        fields: of a job.
        adapters: that the caller may use, by name.
        served: names of models, which no adapter of the same name hides.
    """
    name = fields.get("model")
    if not isinstance(name, str) or name in served or fields.get("lora") is not None:
        return fields
    adapter = adapters.get(name)
    return fields if adapter is None else {**fields, "model": adapter.model, "lora": name}
