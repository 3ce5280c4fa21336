"""AutoRound: the layouts of GPTQ and AWQ, with settings for some layers of their own.

Source: the package auto-round 0.16, its `inference/backend.py` and `export`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .awq import Awq
from .gptq import Gptq
from .scheme import Scheme, Settings, choose, refusal

_NAME: Final = "AutoRound"
#: GPTQ's version, by `packing_format`.
_GPTQ: Final = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptq": "gptq",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round": "gptq_v2",
}
_AWQ: Final = ("auto_round:auto_awq", "auto_round:awq")
#: Layers with more bits are stored dense.
_MOST_BITS: Final = 8


def auto_round(settings: Settings) -> Scheme:
    """Return the format that AutoRound has used.

    Raises:
        UnsupportedModelError: it, or one of its settings, is not read.
        ModelLoadError: the settings are broken.
    """
    stored_as = settings.get("packing_format") or settings.get("backend")
    choose(_NAME, {"packing_format": stored_as}, "packing_format", (*_GPTQ, *_AWQ))
    data_type = settings.get("data_type") or "int"
    choose(_NAME, {"data_type": data_type}, "data_type", ("int",))
    if rotation := settings.get("rotation_config"):
        raise refusal(_NAME, "rotation_config", rotation, "rotations are not computed")
    own: Any = settings.get("extra_config") or {}
    if stored_as in _AWQ:
        return Awq({**settings, "version": "gemm"})
    dynamic = {f"+:(?:{layer})$": values for layer, values in own.items() if _is_packed(values)}
    return Gptq({**settings, "checkpoint_format": _GPTQ[str(stored_as)], "dynamic": dynamic})


def _is_packed(values: Mapping[str, Any]) -> bool:
    return (values.get("bits") or 0) <= _MOST_BITS
