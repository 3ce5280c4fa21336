"""The prompts of a decision: the state first, so that all questions share its tokens."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchmill.engine.contract.decision import messages_of, text_of

from .spec import DecisionSpec, Question

_LETTERS: Final = string.ascii_uppercase
_YES_NO_LABELS: Final = {"yes": "Yes", "no": "No"}
#: The state of the prompt that shows what the model answers without one ("content-free input" of
#: Zhao et al. 2021, "Calibrate Before Use").
NO_STATE: Final = "N/A"


@dataclass(frozen=True, slots=True)
class Asking:
    """One way to ask a question: the order of its options."""

    question: Question
    #: The option at each place is this many places further on in the question's own order.
    rotation: int = 0
    #: Ask without the state.
    is_prior: bool = False

    @property
    def order(self) -> tuple[int, ...]:
        """Places of the options in the question's own order, as they are shown."""
        num_options = len(self.question.options)
        return tuple((place + self.rotation) % num_options for place in range(num_options))

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each option, in the question's own order."""
        if self.question.type == "yes_no":
            return tuple(_YES_NO_LABELS[option] for option in self.question.options)
        labels = dict(zip(self.order, _LETTERS, strict=False))
        return tuple(labels[place] for place in range(len(self.question.options)))


def askings(spec: DecisionSpec) -> list[Asking]:
    """Return every way to ask every question, those of one question together."""
    found = []
    for question in spec.questions:
        for rotation in range(min(spec.rotations, len(question.options))):
            found.append(Asking(question, rotation))
            if spec.has_prior:
                found.append(Asking(question, rotation, is_prior=True))
    return found


def reading_messages(spec: DecisionSpec, asking: Asking) -> list[dict[str, Any]]:
    """Return the chat after which the model's next token is a label.

    The user's message is that of transformers' `pipeline("decision")` for models without a
    decision head, so that both read the same probabilities.
    """
    order, labels = asking.order, asking.labels
    if asking.question.type == "yes_no":
        last = "Answer " + " or ".join(labels[place] for place in order) + " only."
    else:
        what = "option" if asking.question.type == "choice" else "level"
        letters = f"{labels[order[0]]} to {labels[order[-1]]}"
        last = f"Answer with the letter of the {what} that fits best ({letters}) only."
    lines = "\n".join(filter(None, _question_lines(asking)))
    state = NO_STATE if asking.is_prior else spec.state
    return _messages(spec.instructions, state, f"{lines}\n{last}")


def writing_messages(spec: DecisionSpec, question: Question) -> list[dict[str, Any]]:
    """Return the chat in which the model answers a question in its own words."""
    lines = "\n".join(filter(None, _question_lines(Asking(question))))
    return _messages(
        spec.instructions, spec.state, f"{lines}\nAnswer, and say why in one or two sentences."
    )


def _question_lines(asking: Asking) -> list[str]:
    question, labels = asking.question, asking.labels
    lines = [text_of(question.instructions)]
    for place in asking.order:
        text = text_of(question.descriptions[place])
        if question.type == "yes_no":
            lines.append(f"{labels[place]}: {text}" if text else "")
        elif question.type == "choice":
            name = question.options[place]
            lines.append(f"{labels[place]}. {name}: {text}" if text else f"{labels[place]}. {name}")
        else:
            lines.append(f"{labels[place]}. {text}")
    return lines


def _messages(instructions: str | None, state: Any, question: str) -> list[dict[str, Any]]:
    chat = messages_of(state)
    if chat is None:
        messages = [{"role": "user", "content": f"{text_of(state)}\n\n{question}"}]
    else:
        messages = _with_user_text(chat, question)
    if instructions is None:
        return messages
    if messages[0]["role"] == "system":
        content = messages[0]["content"]
        before = f"{instructions}\n\n"
        if isinstance(content, str):
            return [{"role": "system", "content": before + content}, *messages[1:]]
        parts = [{"type": "text", "text": before}, *content]
        return [{"role": "system", "content": parts}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]


def _with_user_text(chat: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return a chat that ends with a text of the user; many templates refuse two in a row."""
    messages = [dict(message) for message in chat]
    if messages[-1]["role"] != "user":
        return [*messages, {"role": "user", "content": text}]
    messages[-1]["content"] = _with_text(messages[-1]["content"], f"\n\n{text}")
    return messages


def _with_text(content: str | Sequence[Mapping[str, Any]], text: str) -> Any:
    """Return a content that goes on with a text."""
    if isinstance(content, str):
        return content + text
    *parts, last = content
    if last["type"] == "text":
        return [*parts, {"type": "text", "text": last["text"] + text}]
    return [*content, {"type": "text", "text": text}]
