"""The kinds of a job: what it asks a model for, and which field has a kind's own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a job asks a model for."""

    #: Text, from a prompt or a chat.
    GENERATE = "generate"
    #: Probabilities for the options of questions about one state.
    DECIDE = "decide"
    #: A vector for each of some texts.
    EMBED = "embed"
    #: Scores of texts, or of texts against a query.
    SCORE = "score"


#: Kind -> the field of a job's document that has its input and its parameters. A job that has none
#: of these fields generates. The section of its result has the same name.
SECTIONS: Final[Mapping[Kind, str]] = {
    Kind.DECIDE: "decision",
    Kind.EMBED: "embedding",
    Kind.SCORE: "scoring",
}
