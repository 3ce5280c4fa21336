"""The prompts of the demo: small jobs as backend services submit them to a language model.

Most are what a model of 135 million parameters does fairly well; the others show its limits.
Each is a chat, because the model was trained on chats. Where earlier turns show examples, that
is because a small model follows a pattern better than an instruction; prompts of a kind share
these turns, which the engine computes once. `structure` makes any model keep the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """One chat and the maximum number of output tokens."""

    #: What is asked of the model; the prompts of a kind follow each other.
    kind: str
    #: The part of the chat that differs from the others of its kind.
    shown: str
    messages: list[dict[str, Any]]
    max_tokens: int
    #: Fields of the job that fix the form of its output.
    structure: dict[str, Any] = field(default_factory=dict)


def demo_prompts() -> tuple[DemoPrompt, ...]:
    """Return the 33 prompts of the demo, by kind."""
    return (
        *(_extraction(text, schema) for text, schema in _TO_EXTRACT),
        *(_correction(sentence) for sentence in _TO_CORRECT),
        *(_question(text) for text in _QUESTIONS),
        *(_summary(text) for text in _TO_SUMMARISE),
        *(_classification(review) for review in _TO_CLASSIFY),
        *(_limit(text) for text in _BEYOND_IT),
        _conversation(),
    )


def _extraction(text: str, properties: dict[str, Any]) -> DemoPrompt:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    named = {"name": "data", "schema": schema}
    return DemoPrompt(
        "Extract data as JSON, with a schema that the output follows",
        text,
        _chat(f"Extract the data from the text as JSON.\n\nText: {text}"),
        64,
        {"response_format": {"type": "json_schema", "json_schema": named}},
    )


def _classification(review: str) -> DemoPrompt:
    earlier = [text for pair in _CLASSIFIED for text in (f"Review: {pair[0]}", pair[1])]
    return DemoPrompt(
        "Beyond so small a model: the sentiment of a review, held to two words",
        review,
        _chat(*earlier, f"Review: {review}"),
        4,
        {"structured_outputs": {"choice": ["positive", "negative"]}},
    )


def _correction(sentence: str) -> DemoPrompt:
    earlier = [t for pair in _CORRECTED for t in (f"Correct the sentence: {pair[0]}", pair[1])]
    return DemoPrompt(
        "Correct a sentence, after examples",
        sentence,
        _chat(*earlier, f"Correct the sentence: {sentence}"),
        20,
    )


def _question(text: str) -> DemoPrompt:
    earlier = [part for pair in _ANSWERED for part in pair]
    return DemoPrompt("Answer a simple question, after examples", text, _chat(*earlier, text), 24)


def _summary(text: str) -> DemoPrompt:
    chat = _chat(f"Summarize the text in one short sentence.\n\n{text}")
    return DemoPrompt("Summarize in one sentence", text, chat, 48)


def _limit(text: str) -> DemoPrompt:
    kind = "Beyond so small a model: arithmetic, letters, knowledge"
    return DemoPrompt(kind, text, _chat(text), 40)


def _conversation() -> DemoPrompt:
    question = "What can I do about it myself, at home?"
    messages = [
        {"role": "system", "content": "You are the friendly help desk of a bicycle shop."},
        *_chat(
            "My brakes squeal when it rains. Is that dangerous?",
            "Usually it is only water and dirt on the rims.",
            question,
        ),
    ]
    return DemoPrompt("Continue a conversation about squealing brakes", question, messages, 64)


def _chat(*texts: str) -> list[dict[str, Any]]:
    """Return messages whose authors take turns; the first is the user's."""
    roles: Sequence[str] = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


_TEXT, _NUMBER = {"type": "string", "maxLength": 60}, {"type": "integer"}

_TO_EXTRACT: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "Anna Berg from Oslo ordered 3 lamps.",
        {"name": _TEXT, "city": _TEXT, "product": _TEXT, "quantity": _NUMBER},
    ),
    (
        "My name is Tom Reed, I am 42 years old and I live in Leeds.",
        {"name": _TEXT, "age": _NUMBER, "city": _TEXT},
    ),
    (
        "Please send 12 boxes of green tea to Maria Silva in Porto.",
        {"name": _TEXT, "city": _TEXT, "product": _TEXT, "quantity": _NUMBER},
    ),
    (
        "The meeting with Dr. Chen is on 14 March at 10:30 in room 204.",
        {"person": _TEXT, "date": _TEXT, "time": _TEXT, "room": _TEXT},
    ),
    (
        "Lisbon is the capital of Portugal and has about 550,000 inhabitants.",
        {"city": _TEXT, "country": _TEXT, "inhabitants": _NUMBER},
    ),
    (
        "The concert of the Red Foxes is on 12 June in Vienna and costs 35 euros.",
        {"band": _TEXT, "date": _TEXT, "city": _TEXT, "price": _NUMBER},
    ),
    (
        "Mount Fuji in Japan is 3,776 metres high.",
        {"mountain": _TEXT, "country": _TEXT, "height": _NUMBER},
    ),
    (
        "The blue bicycle costs 420 euros and weighs 11 kilograms.",
        {"item": _TEXT, "colour": _TEXT, "price": _NUMBER, "weight": _NUMBER},
    ),
)

_CLASSIFIED = (
    ("The jacket is warm and fits well.", "positive"),
    ("The zip broke on the first day.", "negative"),
    ("Delicious food and a friendly waiter.", "positive"),
    ("Far too expensive, and it smells of plastic.", "negative"),
)
_TO_CLASSIFY = (
    "The shoes are comfortable and arrived a day early.",
    "The screen was scratched and nobody answers my e-mails.",
    "Great coffee and a lovely view of the river.",
    "It stopped working after two days.",
    "The book is boring and far too long.",
    "Best headphones I have ever owned.",
)

_CORRECTED = (
    ("she dont like the new office", "She doesn't like the new office."),
    ("their is two mistake in this text", "There are two mistakes in this text."),
    ("we was late yesterday", "We were late yesterday."),
)
_TO_CORRECT = (
    "i has recieved you're letter",
    "he go to work by bus",
    "the childs plays in the garden",
    "yesterday i buyed a book",
    "them cars is fast",
    "can you helps me",
)

_ANSWERED = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What do cows eat?", "Cows eat grass."),
    ("Which metal is liquid at room temperature?", "Mercury is liquid at room temperature."),
)
_QUESTIONS = (
    "What is the capital of Norway?",
    "What do bees make?",
    "How many days are in a week?",
    "What is the opposite of hot?",
    "Who wrote Romeo and Juliet?",
    "Which gas do plants take from the air?",
)

_TO_SUMMARISE = (
    "The ferry runs every forty minutes in summer and every two hours in winter. Bicycles travel "
    "free of charge outside the school holidays.",
    "Customers praise the backpack's many pockets and its light weight. Several say that the zip "
    "of the front pocket is hard to close when the bag is full.",
    "The checkout was slow last week. The database was waiting for a lock that a nightly report "
    "held for up to forty seconds. The report now reads from a replica, and the checkout answers "
    "within two seconds again.",
)

_BEYOND_IT = (
    "What is 17 times 23?",
    "How many times does the letter r occur in strawberry?",
    "Who won the football world cup in 2018?",
)
