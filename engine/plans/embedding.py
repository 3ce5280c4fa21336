"""The plan of an embedding job: a pooled request for each text, and all vectors in one section."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.contract.pooling import MAX_VECTOR_BYTES
from batchmill.engine.errors import RequestError
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.request.pooling import PoolingParams

from .plan import Plan, PlannedJob, PlannedRequest, PlanResult

_OPTIONS = ("pooling", "dimensions", "normalize", "truncate")


def embedding_plan(job: PlannedJob) -> Plan:
    """Embed each input of a job.

    Raises:
        RequestError: the vectors together are above the limit, or an option is wrong.
    """
    fields = job.section
    params = PoolingParams(**options(fields, _OPTIONS))
    inputs: Sequence[Any] = fields["input"]
    check_vectors_fit(len(inputs), params.dimensions or job.engine.pooling.size)
    outputs = yield [PlannedRequest(each, params) for each in inputs]
    vectors = stacked(outputs)
    section = {
        "count": len(vectors),
        "dimensions": vectors.shape[1],
        "data": encoded(vectors),
        "prompt_tokens": [each.num_prompt_tokens for each in outputs],
    }
    if fields.get("encoding_format") is not None:  # for whoever writes the result
        section["encoding_format"] = fields["encoding_format"]
    return PlanResult(section)


def options(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the given options among the fields of a section."""
    return {name: fields[name] for name in names if fields.get(name) is not None}


def check_vectors_fit(count: int, dimensions: int) -> None:
    """Refuse a job whose vectors would be too large for its record.

    Raises:
        RequestError: `invalid_request`.
    """
    num_bytes = 4 * count * dimensions
    if num_bytes > MAX_VECTOR_BYTES:
        raise RequestError(
            "invalid_request",
            f"{count} vectors of {dimensions} numbers have {num_bytes} bytes, the limit is "
            f"{MAX_VECTOR_BYTES}: send the inputs as several jobs, or set dimensions",
        )


def stacked(outputs: Sequence[RequestOutput]) -> NDArray[np.float32]:
    """Return the vectors of outputs that have all completed, [len(outputs), size]."""
    return np.stack([each.vector for each in outputs if each.vector is not None])


def encoded(vectors: NDArray[np.float32]) -> str:
    """Return vectors as base64 of little-endian float32, row after row."""
    return base64.b64encode(vectors.astype("<f4").tobytes()).decode()
