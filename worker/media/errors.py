"""Why a picture or a sound cannot be used: a code, and a message that names limit and remedy."""

from __future__ import annotations

from typing import Final

#: It is damaged, empty, or in a format that is not read.
INVALID: Final = "media_invalid"
#: It exceeds a limit of bytes, pixels, time or memory.
TOO_LARGE: Final = "media_too_large"
#: It is not stored any more.
MISSING: Final = "media_missing"
#: Its URL may not be fetched, or its server refuses to send it.
REFUSED: Final = "media_refused"
#: Its server did not send it; another attempt may get it.
UNREACHABLE: Final = "media_unreachable"
#: This worker lacks the packages that read it.
UNAVAILABLE: Final = "media_unavailable"


class MediaError(Exception):
    """A picture or a sound that a job cannot be run with.

    Attributes:
        code: One of the codes above.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
