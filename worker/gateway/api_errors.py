"""`ApiError`: what a caller did wrong or must know, and its envelope in each API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchmill.producer import errors as producer
from batchmill.worker.service_errors import ServiceError

#: Anthropic's and OpenAI's name for the kind of an error, by its status.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
#: Codes of jobs that the engine refused because of what they ask for.
_CALLERS_FAULT = frozenset(
    {"context_length_exceeded", "invalid_request", "unsupported_parameter", "structure_too_complex"}
)
#: The stock clients repeat 408, 409, 429 and 5xx unless this header says otherwise.
DO_NOT_RETRY = {"x-should-retry": "false"}


class ApiError(ServiceError):
    """A response that is an error.

    Attributes:
        status: HTTP status.
        code: machine-readable name of the error.
        param: the field at fault.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def openai_body(self) -> dict[str, Any]:
        """Return OpenAI's envelope."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": _OPENAI_TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }

    def anthropic_body(self, request_id: str) -> dict[str, Any]:
        """Return Anthropic's envelope."""
        kind = _ANTHROPIC_TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "api_error"
        )
        return {
            "type": "error",
            "error": {"type": kind, "message": str(self)},
            "request_id": request_id,
        }


def not_found(what: str, name: str) -> ApiError:
    """Return the error for an object that does not exist, or belongs to another tenant."""
    return ApiError(404, f"{what} {name[:200]!r} does not exist", code="not_found")


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    """Return the error for a request that is wrong."""
    return ApiError(400, message, code=code, param=param)


def api_error(error: Exception) -> ApiError | None:
    """Return the error that one of the producer stands for; None if it is unforeseen."""
    match error:
        case ApiError():
            return error
        case producer.QueueFull():
            return ApiError(429, str(error), code=error.code, headers={"retry-after": "1"})
        case producer.StructureCheckUnavailable():
            return ApiError(503, str(error), code=error.code, headers={"retry-after": "1"})
        case producer.IdempotencyConflict():
            return ApiError(
                409, str(error), code=error.code, param=error.param, headers=DO_NOT_RETRY
            )
        case producer.JobRejected():
            return ApiError(400, str(error), code=error.code, param=error.param)
        case producer.JobUnfinished():
            return _unfinished_error(error)
        case producer.ResultTimeout():
            return ApiError(504, str(error), code="timeout", headers=DO_NOT_RETRY)
        case producer.UnknownJob() | producer.UnknownBatch():
            return ApiError(404, str(error), code="not_found")
        case producer.WrongState() | producer.InvalidQuery():
            return ApiError(400, str(error), code="invalid_request")
        case producer.NotReplicated():
            # A stock client would repeat it without a key, which makes a second job.
            return ApiError(
                503,
                "the job is stored and runs, but too few replicas have it; repeat the request "
                "under the same Idempotency-Key",
                code=error.code,
                headers={"retry-after": "1", **DO_NOT_RETRY},
            )
        case producer.ShardMismatch() if error.shards:
            told = f"it is in shard {error.shards[0]}, which this gateway does not have (any more)"
            return ApiError(404, told, code="not_found")
        case producer.ShardMismatch():
            return ApiError(
                503,
                "this gateway has another list of shards than the queue; its operator must correct "
                "it, see its log",
                code=error.code,
                headers={"retry-after": "10"},
            )
        case producer.BrokerUnavailable():
            names = " and ".join(error.shards)
            place = f"shard {names} of the queue" if names else "the queue"
            return ApiError(
                503,
                f"{place} cannot be reached at the moment; try again",
                code="broker_unavailable",
                headers={"retry-after": "1"},
            )
        case producer.KeyMissing():
            return ApiError(
                503,
                f"the content is sealed with the key {error.key_id}, which this gateway does not "
                "have; its operator must add it",
                code=error.code,
                headers={"retry-after": "10"},
            )
        case producer.ContentChanged() | producer.PayloadMissing():
            return ApiError(500, str(error), code=error.code, headers=DO_NOT_RETRY)
        case producer.PayloadUnreachable():
            return ApiError(
                503,
                "the store of large prompts and results cannot be reached at the moment; try again",
                code=error.code,
                headers={"retry-after": "1"},
            )
        case _:
            return None


def _unfinished_error(error: producer.JobUnfinished) -> ApiError:
    """Return the error of a job that ended without a completion: it is not repeated by itself."""
    status = 500
    if error.code in _CALLERS_FAULT:
        status = 400
    elif error.code == "low_confidence":  # the caller asked for this failure
        status = 422
    elif isinstance(error, producer.JobExpired):
        status = 504
    elif isinstance(error, producer.JobCancelled):
        status = 409
    return ApiError(status, str(error), code=error.code, headers=DO_NOT_RETRY)
