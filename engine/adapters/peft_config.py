"""Reads the configuration of a PEFT adapter, and refuses by name what is not computed here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchmill.engine.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
#: Fields that say where an adapter comes from and nothing about what it computes.
SOURCE_FIELDS = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
        "task_type",
    }
)
#: Fields that are read here, or that only training reads.
_KNOWN_FIELDS = SOURCE_FIELDS | {
    *("alpha_pattern", "ensure_weight_tying", "eva_config", "exclude_modules"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
    *("megatron_core", "peft_type", "qalora_group_size", "r", "rank_pattern", "target_modules"),
    "use_rslora",
}
#: Kinds of LoRA that compute something else, by the field that asks for them.
_OTHER_KINDS = {
    "alora_invocation_tokens": "aLoRA, which begins at certain tokens",
    "arrow_config": "Arrow, which routes tokens between adapters",
    "corda_config": "CorDA, which changes the model's own weights",
    "fan_in_fan_out": "transposed weights",
    "kasa_config": "KaSA",
    "layer_replication": "repeated layers",
    "loftq_config": "LoftQ, which changes the model's own weights",
    "lora_bias": "biases",
    "lora_ga_config": "LoRA-GA, which changes the model's own weights",
    "megatron_config": "Megatron's parallel layers",
    "modules_to_save": "whole modules beside the adapter",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "parameters that are not linear layers, such as fused experts",
    "trainable_token_indices": "trained tokens",
    "use_bdlora": "BD-LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "velora_config": "VeLoRA",
}
#: Initial values that leave the model's own weights as they are. The others (PiSSA, OLoRA, CorDA,
#: LoftQ, LoRA-GA) change them, so the adapter alone is not what was trained.
_HARMLESS_INITS = ("eva", "gaussian", "orthogonal")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What decides how an adapter's matrices are used.

    Attributes:
        rank: Of modules that no pattern names.
        alpha: As `rank`.
        ranks: Ranks by patterns of modules; the first that matches counts.
        alphas: As `ranks`.
        is_rank_stabilized: Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilized: bool

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, by its name in the model."""
        return int(_first_match(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return what the product of a module's matrices is multiplied by.

        Source: rank-stabilized scaling, Kalajdzievski 2023.
        """
        rank, alpha = self.rank_of(module), _first_match(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.is_rank_stabilized else alpha / rank


def _first_match(patterns: Mapping[str, float], module: str, default: float) -> float:
    for pattern, value in patterns.items():
        if re.match(_of_module(pattern), module):
            return value
    return default


def _of_module(pattern: str) -> str:
    """Return the expression for the whole names of the modules that a pattern means."""
    return rf"(.*\.)?({pattern})$"


def load_config_file(folder: Path) -> dict[str, Any]:
    """Return the content of an adapter's configuration file, unchecked.

    Raises:
        AdapterError: it is missing, or is not a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise AdapterError(
            f"{CONFIG_FILE} cannot be read ({error.strerror}): an adapter is a folder that PEFT's "
            "save_pretrained writes"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG_FILE} is not JSON: save the adapter again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{CONFIG_FILE} is not a JSON object: save the adapter again")
    return content


def read_peft_config(folder: Path) -> PeftConfig:
    """Read and check an adapter's configuration.

    Raises:
        AdapterError: it cannot be read, or asks for something that is not computed here.
    """
    content = load_config_file(folder)
    _refuse_other_kinds(content)
    try:
        config = PeftConfig(
            rank=int(content["r"]),
            alpha=float(content["lora_alpha"]),
            ranks={str(key): int(value) for key, value in _patterns(content, "rank").items()},
            alphas={str(key): float(value) for key, value in _patterns(content, "alpha").items()},
            is_rank_stabilized=bool(content.get("use_rslora")),
        )
        for pattern in (*config.ranks, *config.alphas):
            re.compile(_of_module(pattern))
        if not all(map(math.isfinite, (config.alpha, *config.alphas.values()))):
            raise ValueError("lora_alpha is not finite")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, re.error) as error:
        raise AdapterError(
            f"{CONFIG_FILE} lacks a valid r, lora_alpha, rank_pattern or alpha_pattern "
            f"({type(error).__name__}): save the adapter again"
        ) from error
    if min(config.rank, *config.ranks.values(), config.rank) < 1:
        raise AdapterError(f"{CONFIG_FILE} has a rank below 1: save the adapter again")
    return config


def _patterns(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = content.get(f"{name}_pattern") or {}
    return found


def _refuse_other_kinds(content: Mapping[str, Any]) -> None:
    if content.get("peft_type") != "LORA":
        raise AdapterError(
            f"its peft_type is {content.get('peft_type')!r}, and only LORA is computed"
        )
    if content.get("bias", "none") != "none":
        raise AdapterError(
            f"its bias is {content['bias']!r}: trained biases are not computed, so train it with "
            "bias 'none'"
        )
    init = content.get("init_lora_weights", True)
    if not isinstance(init, bool) and str(init).lower() not in _HARMLESS_INITS:
        raise AdapterError(
            f"its init_lora_weights is {init!r}, which changes the model's own weights: convert it "
            "with PEFT's path_initial_model_for_weight_conversion, which saves a plain LoRA"
        )
    for name, value in content.items():
        if name in _KNOWN_FIELDS or name == "bias" or _is_off(value):
            continue
        kind = _OTHER_KINDS.get(name)
        if kind is None:
            raise AdapterError(
                f"its {name} is set, which this version does not know: save it without, or with an "
                "earlier PEFT"
            )
        raise AdapterError(f"its {name} asks for {kind}, which is not computed")


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ([], {}, "")
