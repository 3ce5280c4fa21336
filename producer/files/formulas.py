"""Texts that a spreadsheet would compute instead of showing."""

from __future__ import annotations

import re

_STARTS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?\s?%?")


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet may compute a cell of a CSV file that has this text.

    Source: OWASP, "CSV Injection".
    """
    text = text.strip(" ")
    return len(text) > 1 and text.startswith(_STARTS) and not _NUMBER.fullmatch(text)
