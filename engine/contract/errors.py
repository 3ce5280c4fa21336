"""The error of a request that breaks the contract."""

from __future__ import annotations


class ContractError(ValueError):
    """A request is wrong, or asks for something that this version does not support.

    The engine raises it again as `RequestError`, a producer as `JobRejected`.

    Attributes:
        code: `invalid_request`, `unsupported_parameter` for a feature of other engines,
            `structure_too_complex` or `structure_check_unavailable`.
        message: For people; names the field, the limit and the remedy, never prompt text.
    """

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
