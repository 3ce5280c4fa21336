"""Numbers with their nouns, for messages."""

from __future__ import annotations


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural (with an s) unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
