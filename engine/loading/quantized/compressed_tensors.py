"""compressed-tensors, the format of llm-compressor.

Each weight belongs to a group of settings, which is found by the names of its `targets`. Settings
of activations and of the KV cache are not used: both stay in the dtype, which is more exact.

Source: the package compressed-tensors 0.20, its `compressors` and `quantization`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from batchmill.engine.errors import ModelLoadError

from .compressed_weights import (
    GLOBAL_SCALE,
    GROUP_INDEX,
    NAME,
    PACKED,
    PLAIN,
    SCALE,
    SHAPE,
    ZERO,
    WeightSettings,
)
from .module import Layout
from .scheme import Settings, choose, matcher, refusal

_PATTERN = "re:"


class CompressedTensors:
    """Weights in one of the package's formats, or in several."""

    name: Final = NAME
    parts: Final = (PACKED, PLAIN, SCALE, ZERO, SHAPE, GLOBAL_SCALE, GROUP_INDEX)
    ignored_parts: Final = (
        *(".input_scale", ".input_zero_point", ".input_global_scale", ".input_g_idx"),
        *(".output_scale", ".output_zero_point", ".output_global_scale"),
        *(".q_scale", ".k_scale", ".v_scale", ".q_zero_point", ".k_zero_point", ".v_zero_point"),
    )

    def __init__(self, settings: Settings) -> None:
        """Read the groups.

        Raises:
            UnsupportedModelError: a group is stored in a way that is not read.
            ModelLoadError: the settings are broken.
        """
        _refuse_extras(settings)
        #: Settings of each target.
        self._targets: dict[str, WeightSettings] = {}
        for name, group in (settings.get("config_groups") or {}).items():
            if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
                raise refusal(NAME, f"config_groups.{name}", group, "it must hold `weights`")
            read = WeightSettings.read(
                group.get("format") or settings.get("format"), group["weights"]
            )
            self._targets |= dict.fromkeys(group.get("targets") or (), read)

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        if set(stored) == {PLAIN}:
            return None
        return self._settings_of(module).layout()

    def _settings_of(self, module: str) -> WeightSettings:
        """Return the settings of a weight: by its name, else by a pattern, else by its class."""
        module_class = "Embedding" if module.endswith("embed_tokens") else "Linear"
        if module in self._targets:
            return self._targets[module]
        for target in sorted(self._targets):
            if target.startswith(_PATTERN) and matcher(NAME, target.removeprefix(_PATTERN))(module):
                return self._targets[target]
        if module_class in self._targets:
            return self._targets[module_class]
        raise ModelLoadError(
            f"{module} is stored in {NAME}, but no target in config_groups of config.json names it "
            f"or {module_class}: use the config.json that came with these weights"
        )


def _refuse_extras(settings: Settings) -> None:
    """Refuse weights that are stored sparse, or that need transforms."""
    sparsity: Any = settings.get("sparsity_config") or {}
    key = "sparsity_config.format"
    choose(NAME, {key: sparsity.get("format") or "dense"}, key, ("dense",))
    if transforms := settings.get("transform_config"):
        raise refusal(NAME, "transform_config", transforms, "transforms are not computed")
