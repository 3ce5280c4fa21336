"""Limits the time that chat templates take: with some of them it grows with the square of the chat.

A template is a program of the model, and what it reads comes from the caller. It cannot be
interrupted from outside, so its environment looks at the clock when it reads a field or calls a
function: each loop that may be long does one of both, `range` being a function.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

#: CPU time for all renderings of one chat; the engine computes no step meanwhile.
MAX_TEMPLATE_CPU_S: Final = 2.0
# The clock of a thread's CPU time is a system call.
_STEPS_PER_LOOK: Final = 256
_IS_WATCHED: Final = "batchmill_is_watched"


class TemplateTooSlow(BaseException):
    """The time is over. Not an `Exception`: those are a template's own, and are handled as such."""


class Renderer:
    """Renders one chat by its tokenizer's template, any number of times within a limit.

    Source: the limit is ours; the rendering is transformers' `apply_chat_template`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str,
        max_cpu_s: float = MAX_TEMPLATE_CPU_S,
    ) -> None:
        """Begin the limit.

        Args:
            tokenizer: renders the template.
            template: the text of the template that it will use.
            max_cpu_s: seconds of this thread's CPU time for all calls of `render` together.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._until_s = time.thread_time() + max_cpu_s

    def render(self, given: Mapping[str, Any]) -> str:
        """Return the prompt that the template makes of its variables.

        Raises:
            TemplateTooSlow: the limit has passed.
            Exception: the template refuses them; a template may raise anything.
        """
        _watch(self._template)
        with _limit(self._until_s):
            return cast("str", self._tokenizer.apply_chat_template(**given, tokenize=False))


class _Steps(threading.local):
    """Reads and calls of the rendering that this thread is in."""

    until_s: float | None = None
    num: int = 0


_steps = _Steps()


@contextmanager
def _limit(until_s: float) -> Iterator[None]:
    _steps.until_s, _steps.num = until_s, 0
    try:
        _look()
        yield
    finally:
        _steps.until_s = None


def _look() -> None:
    if _steps.until_s is not None and time.thread_time() > _steps.until_s:
        raise TemplateTooSlow


def _watch(template: str) -> None:
    """Make a template's environment count reads and calls. transformers keeps it with its code."""
    environment: Any = chat_template_utils._compile_jinja_template(template).environment
    if not hasattr(environment, _IS_WATCHED):
        environment.getattr = _counted(environment.getattr)
        environment.getitem = _counted(environment.getitem)
        environment.call = _counted(environment.call)
        setattr(environment, _IS_WATCHED, True)


def _counted(step: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        _steps.num += 1
        if _steps.num % _STEPS_PER_LOOK == 0:
            _look()
        return step(*args, **kwargs)

    return counted
