"""Sampling arguments under any API's names, read into the names of `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchmill.engine.contract.aliases import ALIASES, read_other_forms
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.unsupported import UNSUPPORTED_CONTROLS
from batchmill.engine.errors import RequestError


def canonical_arguments(arguments: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Return arguments under the names of `SamplingParams`.

    Args:
        arguments: Under any API's names.
        known: Names of `SamplingParams`.

    Raises:
        RequestError: `unsupported_parameter`; or `invalid_request` for a name that is unknown or
            given twice.
    """
    try:
        arguments = read_other_forms(arguments)
    except ContractError as refusal:
        raise RequestError.of(refusal) from None
    found: dict[str, Any] = {}
    for given, value in arguments.items():
        name = ALIASES.get(given, given)
        unsupported = UNSUPPORTED_CONTROLS.get(name)
        if unsupported is not None:
            if not unsupported.is_neutral(value):
                raise RequestError("unsupported_parameter", unsupported.message(name))
        elif name not in known:
            raise RequestError(
                "invalid_request",
                f"{str(given)[:40]!r} is not a sampling parameter: check the name, or leave it out",
            )
        elif name in found:
            raise RequestError(
                "invalid_request", f"{given} is another name for {name}, which is given as well"
            )
        elif value is not None or name == "max_tokens":
            found[name] = value
    if isinstance(found.get("stop_token_ids"), int):
        found["stop_token_ids"] = [found["stop_token_ids"]]
    return found
