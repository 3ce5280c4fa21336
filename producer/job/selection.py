"""How one of a job's several samples is selected: by their likelihood, or by a vote."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from .field_checks import STRICT, Text

#: Ways that other versions may have; each is refused by name.
_UNSUPPORTED: Final = ("decision", "reward")
MAX_FIELD_CHARS: Final = 256


def _check_way(by: Any) -> Any:
    if by in _UNSUPPORTED:
        message = f"select.by is {by}, which this version does not support: use likelihood or vote"
        raise PydanticCustomError(
            "unsupported_parameter", "{message}", {"message": message, "param": "select"}
        )
    return by


class Selection(BaseModel):
    """Selects one of the `n` samples; all of them stay in the result."""

    model_config = STRICT

    by: Annotated[Literal["likelihood", "vote"], BeforeValidator(_check_way)]
    """`likelihood`: the sample whose tokens have the highest mean log probability in the model's
    own distribution. `vote`: the first of the samples that give the most frequent answer
    (self-consistency)."""

    field: Annotated[Text, Field(min_length=1, max_length=MAX_FIELD_CHARS)] | None = None
    """Of a vote: the field of the sample's JSON object that is its answer, with dots into
    objects, such as `result.answer`. Without it, the whole text is."""

    @model_validator(mode="after")
    def _check_field_is_for_votes(self) -> Self:
        if self.field is not None and self.by != "vote":
            raise ValueError(f"field has no effect by {self.by}; leave it out, or use vote")
        return self
