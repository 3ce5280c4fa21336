"""Health files: what a worker or deliverer writes about itself, and how a probe reads it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from batchmill.producer.broker_url import runtime_dir
from batchmill.worker.metrics.probes import Health

#: Seconds between two reports of a service.
REPORT_INTERVAL_S = 1.0
#: A report that is older shows that the process stands still: it is stopped, or has no processor.
MAX_AGE_S = 15.0
#: Seconds without a reply from Redis after which a service is not ready.
BROKER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """State of a service. A problem is a sentence for people, or None if there is none."""

    #: `worker` or `deliverer`.
    service: str
    name: str
    #: The process must be restarted.
    live_problem: str | None
    #: The process works, but does no work now.
    ready_problem: str | None
    #: It could work, but Redis does not reply.
    broker_problem: str | None


class HealthFile:
    """The file of one service process; a thread or task of the service rewrites it every second."""

    def __init__(self, service: str, folder: Path | None = None) -> None:
        """Choose the file; nothing is written before `write`.

        Args:
            service: `worker` or `deliverer`.
            folder: of all health files; None is that of this user.
        """
        self._folder = folder or health_folder()
        self._path = self._folder / f"{service}-{os.getpid()}.json"
        self._process_start = _process_start(os.getpid())
        self._last: tuple[HealthReport, float] | None = None

    def write(self, report: HealthReport) -> None:
        """Replace the report.

        Raises:
            OSError: the folder is not writable, or belongs to another user.
        """
        self._last = report, time.monotonic()
        # `mkdir` gives its mode to the last folder alone. The embedded broker shares the one above,
        # and refuses one that others can read.
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self._folder} belongs to another user")
        # The monotonic clock counts from the machine's start, so other processes can compare it.
        stamp = {"process_start": self._process_start, "written_at_s": time.monotonic()}
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(report) | stamp))
        draft.replace(self._path)

    def probe(self) -> Health:
        """Return the state of the service for HTTP probes: what the last report says of it."""
        if self._last is None:
            return Health(None, "it is starting")
        report, at = self._last
        if time.monotonic() - at > MAX_AGE_S:
            return Health(_stale_problem(time.monotonic() - at), report.ready_problem)
        return Health(report.live_problem, report.ready_problem or report.broker_problem)

    def remove(self) -> None:
        """Delete the report: the service ends."""
        self._path.unlink(missing_ok=True)


def health_folder() -> Path:
    """Return the folder of this user's health files."""
    return runtime_dir() / "health"


def read_reports(service: str, folder: Path | None = None) -> list[HealthReport]:
    """Return the reports of the processes of a service that run on this machine, by name.

    A process that has written nothing lately has a problem. Files of processes that are gone are
    deleted.
    """
    paths = (folder or health_folder()).glob(f"{service}-*.json")
    reports = (_read_report(path) for path in paths)
    return sorted((each for each in reports if each is not None), key=lambda each: each.name)


def _read_report(path: Path) -> HealthReport | None:
    """Return the report in a file, or None if its process is gone."""
    pid = int(path.stem.rpartition("-")[2])
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    process_start, written_at_s = fields.pop("process_start"), fields.pop("written_at_s")
    if _process_start(pid) != process_start:  # it is gone, and the pid may be in use again
        path.unlink(missing_ok=True)
        return None
    age_s = time.monotonic() - written_at_s
    if age_s > MAX_AGE_S:
        fields["live_problem"] = _stale_problem(age_s)
    return HealthReport(**fields)


def _stale_problem(age_s: float) -> str:
    return f"the process has not moved for {age_s:.0f} s"


def _process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may contain anything.
    return int(status.rpartition(")")[2].split()[19])
