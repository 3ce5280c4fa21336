"""What a request names by its digest: a LoRA adapter, or steering vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from batchmill.engine.errors import RequestError

if TYPE_CHECKING:
    from batchmill.engine.adapters.pool import AdapterPool
    from batchmill.engine.contract.steering import SteeringSpec
    from batchmill.engine.request.adapter import Adapter
    from batchmill.engine.request.steering import Steering
    from batchmill.engine.steering.vectors import SteeringVectors

_Name = TypeVar("_Name", contravariant=True)
_Found = TypeVar("_Found", covariant=True)


class _Versions(Protocol[_Name, _Found]):
    def find(self, name: _Name, /) -> _Found:
        """Return a version, or refuse it with a `RequestError`."""


def find_adapter(pool: AdapterPool | None, digest: str | None) -> Adapter | None:
    """Return the adapter that a request names; None if it names none.

    Raises:
        RequestError: the engine has no adapters, or not this one.
    """
    return _find(
        pool,
        digest,
        "lora names an adapter, and this engine computes none: set lora_folder "
        "(BATCHMILL_LORA_FOLDER)",
    )


def find_steering(vectors: SteeringVectors | None, spec: SteeringSpec | None) -> Steering | None:
    """Return what steers a request; None if nothing does.

    Raises:
        RequestError: the engine has no steering vectors, or not these.
    """
    return _find(
        vectors,
        spec,
        "steering names a vector, and this engine adds none: set steering_folder "
        "(BATCHMILL_STEERING_FOLDER)",
    )


def _find(
    versions: _Versions[_Name, _Found] | None, name: _Name | None, refusal: str
) -> _Found | None:
    if name is None:
        return None
    if versions is None:
        raise RequestError("unsupported_parameter", refusal)
    return versions.find(name)
