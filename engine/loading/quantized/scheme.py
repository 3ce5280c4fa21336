"""What a model's weights are stored as: the interface of a format, and reading of its settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError

from .module import Layout

#: The settings of a format, as in `quantization_config` of config.json.
Settings = Mapping[str, Any]

#: How to go on with a model that is stored in a way that is not read.
OTHER_WEIGHTS: Final = (
    "use the model's weights in bfloat16, float16 or float32, or in a format of docs/models.md"
)


class Scheme(Protocol):
    """One format of quantized weights, with the settings of one model."""

    @property
    def name(self) -> str:
        """The format's name, for messages."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Endings of the names of all tensors that weights are stored as."""

    @property
    def ignored_parts(self) -> tuple[str, ...]:
        """Endings of tensors that only quantized activations and caches use."""

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; None if it is stored dense.

        Args:
            module: Its name without the ending.
            stored: The endings that are stored; at least one of `parts`.

        Raises:
            ModelLoadError: the weight is not stored as the settings say.
            UnsupportedModelError: it is stored in a way that is not read.
        """


def choose(scheme: str, settings: Settings, key: str, allowed: Collection[Any]) -> Any:
    """Return a setting that must be one of a few values.

    Raises:
        UnsupportedModelError: it is another one.
    """
    value = settings.get(key)
    if not any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed
    ):
        raise refusal(scheme, key, value, f"only {' or '.join(map(_shown, allowed))} is read")
    return value


def group_size(scheme: str, settings: Settings, key: str = "group_size") -> int | None:
    """Return the columns that share a scale; None if all of a row do.

    Raises:
        ModelLoadError: it is not a size.
    """
    value = settings.get(key)
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelLoadError(
            f"config.json says that this model's weights are in {scheme} with {key} "
            f"{_shown(value)}, but it must be -1 or an integer from 1: download config.json again"
        )
    return value


def refusal(scheme: str, key: str, value: Any, why: str) -> UnsupportedModelError:
    """Return an error about a setting whose weights are not read."""
    return UnsupportedModelError(
        f"this model's weights are in {scheme} with {key} {_shown(value)}; {why}: {OTHER_WEIGHTS}"
    )


def matcher(scheme: str, pattern: str) -> Callable[[str], Any]:
    """Return the match of a regular expression with the beginning of a module's name.

    Raises:
        ModelLoadError: it is not a regular expression.
    """
    try:
        return re.compile(pattern).match
    except re.error as error:
        raise ModelLoadError(
            f"config.json has {pattern!r} among the {scheme} settings, which is not a regular "
            f"expression ({error}): download config.json again"
        ) from error


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
