"""Reads a GGUF file's position scaling, which transformers leaves out of the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from batchmill.engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

#: llama.cpp stores the result of the llama3 scaling, not its parameters. All published models have
#: these two; the original length is one of the powers of 2.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_LENGTHS = [2**exponent for exponent in range(5, 21)]


def take_over_positions(config: PreTrainedConfig, reader: GGUFReader, path: Path) -> None:
    """Write the file's position scaling into its model's configuration.

    Without it, every output would be wrong, the more so the longer the text is.

    Args:
        config: The configuration that transformers read from the file.
        reader: The file.
        path: The file, for errors.

    Raises:
        UnsupportedModelError: the scaling cannot be expressed in the configuration.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return  # the model has no rotary embedding
    file = _Positions(reader, path)
    by_layer_type = any(isinstance(values, Mapping) for values in rope.values())
    scaling = file.scaling(config, rope)
    if by_layer_type:
        # llama.cpp scales only the layers without a window.
        if scaling and (scaling["rope_type"] != "linear" or "full_attention" not in rope):
            raise file.unsupported_error(f"{scaling['rope_type']} scaling of some layers")
        if scaling:
            rope["full_attention"] = {**rope["full_attention"], **scaling}
        return
    file.take_over_rotated_part(config, rope)
    rope.update(scaling)
    if scaling.get("rope_type") == "longrope" and hasattr(
        config, "original_max_position_embeddings"
    ):
        config.original_max_position_embeddings = scaling["original_max_position_embeddings"]


class _Positions:
    """The position scaling that one file contains."""

    def __init__(self, reader: GGUFReader, path: Path) -> None:
        self._path = path
        architecture = reader.fields["general.architecture"].contents()
        prefix = f"{architecture}.rope."
        self._values: dict[str, Any] = {
            name.removeprefix(prefix): field.contents()
            for name, field in reader.fields.items()
            if name.startswith(prefix)
        }
        self._factors = {
            tensor.name: np.asarray(tensor.data, dtype=np.float64).reshape(-1)
            for tensor in reader.tensors
            if tensor.name.startswith("rope_f")
        }

    def unsupported_error(self, found: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._path} has {found}, which cannot be taken over from GGUF: use the model's "
            "safetensors instead"
        )

    def scaling(self, config: PreTrainedConfig, rope: Mapping[str, Any]) -> dict[str, Any]:
        """Return the scaling as entries of `rope_parameters`; empty if there is none."""
        factor = float(self._values.get("scaling.factor") or self._values.get("scale_linear") or 0)
        # Without a type, llama.cpp scales linearly.
        kind = self._values.get("scaling.type", "linear" if factor else "none")
        if any(name.startswith("rope_factors_") for name in self._factors):
            return self._longrope(config)
        if "rope_freqs.weight" in self._factors:
            if kind != "none" and factor not in (0, 1):
                raise self.unsupported_error(f"both rope_freqs and {kind} scaling of positions")
            return self._llama3(self._factors["rope_freqs.weight"], rope)
        if kind == "none" or (kind == "linear" and factor in (0, 1)):
            return {}
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind == "yarn" and factor > 0:
            return self._yarn(config, factor)
        raise self.unsupported_error(f"{kind!r} scaling of positions")

    def take_over_rotated_part(self, config: PreTrainedConfig, rope: dict[str, Any]) -> None:
        """Take over how much of each head is rotated."""
        num_rotated = self._values.get("dimension_count")
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        share = rope.get("partial_rotary_factor") or 1.0
        if num_rotated is None or num_rotated == int(head_dim * share):
            return
        if config.model_type != "phi3":
            raise self.unsupported_error(f"rotation of {num_rotated} of {head_dim} elements")
        rope["partial_rotary_factor"] = num_rotated / head_dim

    def _yarn(self, config: PreTrainedConfig, factor: float) -> dict[str, Any]:
        for name in ("scaling.yarn_log_multiplier", "scaling.yarn_ext_factor"):
            if name in self._values:
                raise self.unsupported_error(f"{name} of yarn")
        length = self._values.get("scaling.original_context_length")
        found = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": int(length or config.max_position_embeddings),
            "beta_fast": float(self._values.get("scaling.yarn_beta_fast") or 32),
            "beta_slow": float(self._values.get("scaling.yarn_beta_slow") or 1),
        }
        share = self._attention_factor("scaling.yarn_attn_factor", "scaling.attn_factor")
        if share is not None:
            found["attention_factor"] = share * (0.1 * math.log(factor) + 1)
        return found

    def _longrope(self, config: PreTrainedConfig) -> dict[str, Any]:
        length = self._values.get("scaling.original_context_length")
        short = self._factors.get("rope_factors_short.weight")
        long = self._factors.get("rope_factors_long.weight")
        if config.model_type != "phi3" or not length or short is None or long is None:
            raise self.unsupported_error("incomplete longrope factors, or those of another family")
        found = {
            "rope_type": "longrope",
            "original_max_position_embeddings": int(length),
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
        }
        share = self._attention_factor("scaling.attn_factor")
        if share is not None:
            found["attention_factor"] = share
        return found

    def _attention_factor(self, *names: str) -> float | None:
        for name in names:
            if self._values.get(name):
                return float(self._values[name])
        return None

    def _llama3(self, factors: NDArray[np.float64], rope: Mapping[str, Any]) -> dict[str, Any]:
        """Find the llama3 scaling that gives these factors."""
        factor = float(factors.max())
        if np.allclose(factors, 1):
            return {}
        for length in _LLAMA3_LENGTHS:
            values = {"factor": factor, **_LLAMA3, "original_max_position_embeddings": length}
            expected = _llama3_factors(len(factors), float(rope["rope_theta"]), values)
            if np.allclose(factors, expected, rtol=1e-3):
                return {"rope_type": "llama3", **values}
        raise self.unsupported_error("rope_freqs that are not those of a Llama 3")


def _llama3_factors(
    num_pairs: int, theta: float, values: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return the divisor of each pair's frequency in the llama3 scaling."""
    wavelengths = 2 * math.pi * theta ** (np.arange(num_pairs) / num_pairs)
    length, factor = values["original_max_position_embeddings"], values["factor"]
    low, high = values["low_freq_factor"], values["high_freq_factor"]
    share = np.clip((length / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / factor + share)
