"""The checks of what a pooled request asks for; the producer, the inbox and the engine use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import ContractError

TASKS: Final = ("embed", "score")
POOLINGS: Final = ("last", "mean", "cls")
ACTIVATIONS: Final = ("sigmoid", "softmax", "none")
TRUNCATIONS: Final = ("start", "end")
#: Numbers of a vector. No model has more.
MAX_DIMENSIONS: Final = 65536
#: Texts of one job; as in OpenAI's API.
MAX_INPUTS: Final = 2048
#: All vectors of one job, at four bytes a number.
MAX_VECTOR_BYTES: Final = 16 << 20

_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "pooling": POOLINGS,
    "activation": ACTIVATIONS,
    "truncate": TRUNCATIONS,
}
#: Fields of one task that another does not have.
_FOREIGN: Final[Mapping[str, tuple[str, ...]]] = {
    "embed": ("activation",),
    "score": ("pooling", "dimensions", "normalize"),
}
_NAMES: Final[Mapping[str, str]] = {"embed": "an embedding", "score": "scores"}


def check_pooling(task: object, fields: Mapping[str, Any]) -> None:
    """Refuse values that cannot work.

    Args:
        task: One of `TASKS`.
        fields: What is asked for, by the names of `PoolingParams`; None is a default.

    Raises:
        ContractError: `invalid_request`; the message names the field, the value and the remedy.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise ContractError(f"task is {_shown(task)}: choose one of {', '.join(TASKS)}")
    for name in _FOREIGN[task]:
        if fields.get(name) is not None:
            raise ContractError(f"{name} does not belong to {_NAMES[task]}: leave it out")
    for name, words in _WORDS.items():
        value = fields.get(name)
        if value is not None and (not isinstance(value, str) or value not in words):
            raise ContractError(f"{name} is {_shown(value)}: choose one of {', '.join(words)}")
    normalize = fields.get("normalize")
    if normalize is not None and not isinstance(normalize, bool):
        raise ContractError(f"normalize is {_shown(normalize)}: use true or false")
    _check_dimensions(fields.get("dimensions"))


def _check_dimensions(dimensions: object) -> None:
    if dimensions is None:
        return
    is_flag = isinstance(dimensions, bool)
    if is_flag or not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ContractError(
            f"dimensions is {_shown(dimensions)}: use an integer from 1 to {MAX_DIMENSIONS}, at "
            "most those of the model"
        )


def _shown(value: object) -> str:
    """Return a value for a message, unless it may be long."""
    is_short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 40)
    return repr(value) if is_short else f"a {type(value).__name__}"
