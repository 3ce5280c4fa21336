"""LoRA adapters in requests, also in OpenAI's way: as the model; and steering vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.store.adapters import RegisteredAdapter
from batchmill.producer.store.reply_errors import adapter_error

_ByName = Mapping[str, RegisteredAdapter]


@dataclass(frozen=True, slots=True)
class RegisteredNames:
    """What a caller's jobs may name."""

    adapters: _ByName = field(default_factory=dict)
    steering_vectors: _ByName = field(default_factory=dict)


def resolve_model(
    fields: Mapping[str, Any], adapters: _ByName, served: Collection[str] = ()
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


def check_names(job: GenerationJob, registered: RegisteredNames, default_model: str) -> None:
    """Refuse an adapter or a vector as submit would, before any job of a batch is submitted.

    Args:
        job: a line's.
        registered: what the caller may use.
        default_model: of a job that names none.

    Raises:
        JobRejected: what it names does not exist, or is one of another model.
    """
    model = job.model or default_model
    steering = None if job.steering is None else job.steering.name
    for param, name, known in (
        ("lora", job.lora, registered.adapters),
        ("steering", steering, registered.steering_vectors),
    ):
        if name is None:
            continue
        adapter = known.get(name)
        if adapter is None or adapter.model != model:
            raise adapter_error(param, name, model, "" if adapter is None else adapter.model)
