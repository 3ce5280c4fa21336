"""Controls that contradict each other, or the tools of a chat."""

from __future__ import annotations

from typing import Final, Protocol

from .errors import ContractError

#: Controls that could end or stretch an output whose end its structure or its call decides.
_ENDING_CONTROLS: Final = ("stop", "stop_token_ids", "min_tokens", "ignore_eos")


class Controls(Protocol):
    """The controls that are compared here; `SamplingParams` and a job's document have them."""

    @property
    def max_tokens(self) -> int | None:
        """Most tokens to generate; None means no limit."""

    @property
    def min_tokens(self) -> int:
        """Fewest tokens to generate."""

    @property
    def prompt_logprobs(self) -> int | None:
        """Likeliest tokens reported per prompt token; None reports nothing."""

    @property
    def echo(self) -> bool:
        """Whether the text begins with the prompt's."""

    @property
    def truncate_prompt_tokens(self) -> int | None:
        """Tokens of the prompt to keep; None keeps all, -1 as many as fit."""


def check_lengths(controls: Controls) -> None:
    """Check that the lengths of prompt and output agree.

    Raises:
        ContractError: they do not.
    """
    if controls.truncate_prompt_tokens == 0:
        raise ContractError("truncate_prompt_tokens is 0: use 1 or more, or -1")
    most = controls.max_tokens
    if most == 0 and controls.prompt_logprobs is None and not controls.echo:
        raise ContractError(
            "max_tokens is 0: ask for prompt_logprobs or echo as well, or for at least 1 token"
        )
    if most is not None and controls.min_tokens > most:
        raise ContractError(f"min_tokens is {controls.min_tokens}: use at most max_tokens ({most})")


def check_guidance(scale: float, *, has_negative_prompt: bool) -> None:
    """Check that a negative prompt has a use.

    Raises:
        ContractError: it has none.
    """
    if has_negative_prompt and scale == 1:
        raise ContractError(
            "negative_prompt has no effect with a guidance_scale of 1: set it above 1"
        )


def check_structure_ends_output(controls: Controls) -> None:
    """Check that nothing but its structure decides where a structured output ends.

    Raises:
        ContractError: a control would.
    """
    if name := _ending_control(controls):
        raise ContractError(
            f"{name} and a structured output are both given: the structure alone decides where the "
            f"output ends, so leave {name} out"
        )


def check_tools_suit(controls: Controls, *, is_structured: bool, must_call: bool) -> None:
    """Check that the controls of a chat with tools do not contradict them.

    Args:
        controls: The chat's.
        is_structured: Whether they demand a structured output.
        must_call: Whether the output must be calls.

    Raises:
        ContractError: they do.
    """
    if is_structured:
        raise ContractError(
            "tools and a structured output are both given: set tool_choice to none for a "
            "structured output, or leave the structure out"
        )
    if must_call and (name := _ending_control(controls)):
        raise ContractError(
            f"{name} and a tool_choice that demands a call are both given: the call alone decides "
            f"where the output ends, so leave {name} out"
        )


def _ending_control(controls: Controls) -> str | None:
    return next((name for name in _ENDING_CONTROLS if getattr(controls, name)), None)
