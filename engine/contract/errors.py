"""The error of a request that breaks the contract."""

from __future__ import annotations


class ContractError(ValueError):
    """A request says something that is wrong or that this version does not support.

    The engine raises it again as `RequestError`, a producer as `JobRejected`.

    Attributes:
        code: `invalid_request`, `unsupported_parameter` for what other engines can do, or
            `structure_too_complex`.
        message: For people; names the field, the limit and the remedy, never prompt text.
    """

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
