"""Products of parameters, of which some cases run by day and all of them at night."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest


def each_value_by_day(*axes: Mapping[str, object]) -> list[Any]:
    """Return the product of parameters; by day only as many cases run as the longest one has.

    Those cover each value of each parameter, along the diagonal. The others are marked `nightly`.

    Args:
        axes: the values of each parameter by their names in the ids of the tests.
    """
    longest = max(len(axis) for axis in axes)
    days = {tuple(place % len(axis) for axis in axes) for place in range(longest)}
    cases = []
    for places in product(*(range(len(axis)) for axis in axes)):
        chosen = [list(axis.items())[place] for axis, place in zip(axes, places, strict=True)]
        cases.append(
            pytest.param(
                *(value for _, value in chosen),
                id="-".join(name for name, _ in chosen),
                marks=() if places in days else pytest.mark.nightly,
            )
        )
    return cases


def named(*values: object) -> dict[str, object]:
    """Return values by their texts, as `each_value_by_day` takes them."""
    return {str(value): value for value in values}
