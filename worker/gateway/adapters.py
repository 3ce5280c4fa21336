"""LoRA adapters in requests, also in OpenAI's way: as the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.store.adapters import RegisteredAdapter
from batchmill.producer.store.reply_errors import adapter_error


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


def check_adapter(
    job: GenerationJob, adapters: Mapping[str, RegisteredAdapter], default_model: str
) -> None:
    """Refuse an adapter as submit would, before any job of a batch is submitted.

    Args:
        job: a line's.
        adapters: that the caller may use, by name.
        default_model: of a job that names none.

    Raises:
        JobRejected: its adapter is not among them, or is one of another model.
    """
    if job.lora is None:
        return
    adapter, model = adapters.get(job.lora), job.model or default_model
    if adapter is None or adapter.model != model:
        raise adapter_error(job.lora, model, "" if adapter is None else adapter.model)
