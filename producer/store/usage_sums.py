"""The sums of the tokens that jobs have used, by day, tenant, API key and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Literal, cast

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, readable_names, stored
from batchmill.producer.protocol.used_tokens import Amounts, read_amounts

Label = Literal["day", "tenant", "key", "model"]
LABELS: tuple[Label, ...] = ("day", "tenant", "key", "model")
#: Longest period of one read: as long as days are kept at most.
MAX_DAYS = 800
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """What the jobs with the same labels have used.

    A label is None if the sum is not by it, and an empty text if the jobs have none, such as the
    key of jobs that came without one. Rows beyond the limit of a day are summed up without labels.
    """

    #: The day in UTC on which the jobs ended, such as `2026-12-01`.
    day: str | None
    tenant: str | None
    #: Id of the API key by which the jobs came.
    key: str | None
    model: str | None
    amounts: Amounts

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The labels in the order of `LABELS`."""
        return (self.day, self.tenant, self.key, self.model)

    def plus(self, amounts: Amounts) -> UsageSum:
        """Return it with further amounts."""
        return replace(self, amounts=self.amounts.plus(amounts))

    def to_dict(self) -> dict[str, str | int]:
        """Return its labels and amounts by name."""
        named = zip(LABELS, self.labels, strict=True)
        return {name: value for name, value in named if value is not None} | self.amounts._asdict()


def read_labels(names: Sequence[str]) -> list[Label]:
    """Return labels by their names, in the order of `LABELS`.

    Raises:
        ValueError: a name is unknown, or is there twice.
    """
    found = [label for label in LABELS if label in names]
    if len(found) != len(names):
        raise ValueError(f"must list some of {', '.join(LABELS)}, each once")
    return found


def usage_sums(first: date, last: date) -> Read[list[UsageSum]]:
    """Read the sums of the days from `first` to `last`, by all labels.

    Raises:
        ValueError: there are more than `MAX_DAYS` days, or the last one is before the first.
    """
    num_days = (last - first).days + 1
    if not 1 <= num_days <= MAX_DAYS:
        raise ValueError(
            f"from {first} to {last} are {num_days} days; a period has 1 to {MAX_DAYS} days"
        )
    days = [first + timedelta(days=number) for number in range(num_days)]

    def queue(pipeline: Any) -> None:
        for day in days:
            pipeline.hgetall(keys.used_tokens((day - _EPOCH).days))

    def parse(replies: list[Any]) -> list[UsageSum]:
        return [
            found for day, fields in zip(days, replies, strict=True) for found in _day(day, fields)
        ]

    return Read(queue, parse, keeps_errors=True)


def grouped(sums: Iterable[UsageSum], by: Sequence[Label]) -> list[UsageSum]:
    """Return the sums by some labels only, in the order of these."""
    groups: dict[tuple[str | None, ...], UsageSum] = {}
    for each in sums:
        dropped: dict[str, None] = {name: None for name in LABELS if name not in by}
        row = replace(each, **cast(Any, dropped))
        known = groups.get(row.labels)
        groups[row.labels] = row if known is None else known.plus(row.amounts)
    places = [LABELS.index(name) for name in by]
    return sorted(groups.values(), key=lambda row: [row.labels[place] or "" for place in places])


def _day(day: date, reply: Any) -> Iterable[UsageSum]:
    fields: Mapping[bytes, bytes] = stored(reply, default={})
    for name in readable_names(fields):
        tenant, _, rest = name.partition(":")
        key, _, model = rest.partition(":")
        yield UsageSum(day.isoformat(), tenant, key, model, read_amounts(fields[name.encode()]))
