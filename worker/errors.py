"""The errors of the worker itself.

WorkerError
 ├── SettingsError        the settings cannot work together
 ├── EngineStartError     the engine process cannot come up; retrying does not help
 ├── MalformedMessage     a queue element is not a usable message; carries a `code`
 └── JobFailed            shown by Celery for a job that failed; carries the job error's `code`
      └── JobReleased     shown by Celery for a job that was given back to its queue

The programs around the worker have their own tree in `service_errors.py`.
"""

from __future__ import annotations

#: Exit status of a worker whose settings or model cannot work: to start it again would not help.
#: The command line ends with it for a wrong setting as well.
EXIT_CONFIG = 8


class WorkerError(Exception):
    """Base of every error that the worker raises on purpose."""


class SettingsError(WorkerError):
    """The settings cannot work; the message names the value, the limit and the remedy."""


class EngineStartError(WorkerError):
    """The engine process cannot come up.

    Attributes:
        may_retry: whether another start may work, as it may once another program has freed memory.
    """

    def __init__(self, message: str, *, may_retry: bool = False) -> None:
        super().__init__(message)
        self.may_retry = may_retry


class MalformedMessage(WorkerError):
    """A queue element that no worker can ever run.

    Attributes:
        code: machine-readable; the dead letter's `reason` starts with it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class JobFailed(WorkerError):
    """A job's final error, as Celery's result backend and events carry it.

    Attributes:
        code: the job error's code.
        message: for people; never prompt or output text.
    """

    def __init__(self, code: str, message: str) -> None:
        # Both as arguments: Celery rebuilds the exception from them on the caller's side.
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class JobReleased(JobFailed):
    """A job that this worker gave back; another attempt continues it."""
