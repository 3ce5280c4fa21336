"""What the Sentinels of a service say about its primary, and whom to believe. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from batchmill.producer.sentinel_url import SentinelService

_MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What one Sentinel says."""

    host: str
    port: int
    #: Host and port of the primary; None if it knows no such service, or did not reply.
    primary: tuple[str, int] | None = None
    error: Exception | None = None

    def describe(self) -> str:
        """Return what it says, in words."""
        why = "knows no such service"
        if self.error is not None:
            why = f"{type(self.error).__name__}: {self.error}"
        elif self.primary is not None:
            why = f"names {self.primary[0]}:{self.primary[1]}"
        return f"{self.host}:{self.port}: {why}"


class SentinelVotes:
    """Counts what Sentinels say."""

    def __init__(self, service: SentinelService) -> None:
        self._service = service
        self._order = {place: at for at, place in enumerate(service.sentinels)}
        self._answers: list[Answer] = []

    @property
    def is_open(self) -> bool:
        """Whether further answers may change the result."""
        num_sentinels = len(self._service.sentinels)
        most = max(self._counts().values(), default=0)
        return len(self._answers) < num_sentinels and 2 * most <= num_sentinels

    def note(self, answer: Answer) -> None:
        """Count an answer."""
        self._answers.append(answer)

    def winner(self) -> tuple[str, int] | None:
        """Return the primary that most name; of a tie, that of the Sentinel listed first."""
        counts = self._counts()
        if not counts:
            return None
        in_order = sorted(self._answers, key=lambda each: self._order[each.host, each.port])
        named = [each.primary for each in in_order if each.primary is not None]
        host, port = max(named, key=lambda primary: counts[primary])
        return host, int(port)

    def problem(self) -> str:
        """Return why no primary is known."""
        said = "; ".join(answer.describe() for answer in self._answers)
        return f"no Sentinel names a primary of {self._service.service!r}: {said}"[
            :_MAX_MESSAGE_CHARS
        ]

    def _counts(self) -> Counter[tuple[str, int]]:
        return Counter(each.primary for each in self._answers if each.primary is not None)
