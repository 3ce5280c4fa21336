"""Errors of the programs around the worker: broker, deliverer, supervisor, demo and benchmarks.

ServiceError
├── BrokerError                the embedded broker cannot run
│   ├── BrokerNotInstalled         this machine has no server program
│   ├── BrokerAlreadyRunning       a live broker owns the directory
│   └── BrokerFailed               the server program ended or did not reply
├── NoStateFolder              a folder cannot be written
├── NotPrivate                 a folder for prompts or secrets is open to others
├── NoWebhookSecret            the deliverer has no secret to sign with
├── ChildFailed                a supervised program could not start
│   └── ChildMisconfigured     its settings or its model cannot work
├── DemoFailed                 the demo did not finish
│   └── DemoInterrupted        a signal ended it
├── MetricsFailed              the metrics cannot be served on their address
├── GatewayFailed              the gateway cannot listen on its address
├── ApiError                   the gateway refuses a request (in `gateway/api_errors.py`)
└── BenchFailed                a benchmark cannot run with these options
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
        pid: process id of the running server; None if it is unknown.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class BrokerFailed(BrokerError):
    """The server program ended at start-up, or did not reply in time."""


class NoStateFolder(ServiceError):
    """The folder for data and logs cannot be created or written."""


class NotPrivate(ServiceError):
    """A folder for prompts, outputs or secrets is open to, or belongs to, another user."""


class NoWebhookSecret(ServiceError):
    """The deliverer has no secret to sign with."""


class ChildFailed(ServiceError):
    """A supervised program ended or did not start in time."""


class ChildMisconfigured(ChildFailed):
    """A supervised program ended because its settings or its model cannot work."""


class GatewayFailed(ServiceError):
    """The gateway cannot listen on its address."""


class MetricsFailed(ServiceError):
    """The metrics cannot be served on their address."""


class DemoFailed(ServiceError):
    """The demo did not finish."""


class DemoInterrupted(DemoFailed):
    """A signal ended the demo."""


class BenchFailed(ServiceError):
    """A benchmark cannot run with these options."""
