"""Errors of the programs around the worker: broker, deliverer, supervisor, command line.

ServiceError
├── BrokerError                the embedded broker cannot run
│   ├── BrokerNotInstalled         no server program on this machine
│   ├── BrokerAlreadyRunning       a live broker owns the directory
│   └── BrokerFailed               the server program ended or did not answer
├── ChildFailed                a supervised program did not come up
├── DemoFailed                 the demo did not finish
└── BenchFailed                a benchmark cannot be run as asked for
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base of every error here."""


class BrokerError(ServiceError):
    """The embedded broker cannot run."""


class BrokerNotInstalled(BrokerError):
    """No Redis-protocol server program was found."""


class BrokerAlreadyRunning(BrokerError):
    """A live broker owns the directory.

    Attributes:
        pid: process id of the running server, or None where it did not tell.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class BrokerFailed(BrokerError):
    """The server program ended at start-up, or did not answer in time."""


class NotPrivate(ServiceError):
    """A folder for prompts, answers or secrets is open to others, or not ours."""


class NoWebhookSecret(ServiceError):
    """The deliverer has no secret to sign with."""


class ChildFailed(ServiceError):
    """A supervised program ended again and again, or did not come up."""


class DemoFailed(ServiceError):
    """The demo could not run to its end."""


class BenchFailed(ServiceError):
    """A benchmark cannot be run as it was asked for."""
