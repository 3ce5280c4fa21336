"""The sentences that say what a form has done, by the word that stands in the URL."""

from typing import Final

NOTICES: Final = {
    "cancelled": "The job is cancelled.",
    "stopping": "The job is being stopped; it ends at its next checkpoint.",
    "ended": "The job had already ended.",
    "retried": "The job is queued again.",
    "forgotten": "The job is erased.",
    "batch-cancelled": "The batch is being cancelled.",
    "letter-retried": "The dead letter is retried.",
    "letter-dropped": "The dead letter is deleted.",
    "paused": "It is paused.",
    "resumed": "It is resumed.",
    "redelivered": "The event will be sent again.",
    "waiting": "The event already waits for delivery.",
    "enabled": "The endpoint is enabled.",
    "disabled": "The endpoint is disabled.",
    "all-redelivered": "The events that were given up will be sent again.",
    "signed-out": "You are signed out.",
}
