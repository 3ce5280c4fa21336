"""Each extra installs enough: programs run with nothing but its distributions."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from .public_interface import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

_RUN_WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not part of this install", name=name)

sys.meta_path.insert(0, Absent())
{program}
"""


def installed_by(requirements: list[str]) -> set[str]:
    """Return all distributions that requirements install, directly or indirectly."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = normalised(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            further = Requirement(text)
            extras = {"", *requirement.extras}
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(further)
    return found


def normalised(name: str) -> str:
    """Return a distribution's name in the form that is equal for all ways of writing it."""
    return name.lower().replace("_", "-").replace(".", "-")


def absent_modules(extra: str | None) -> set[str]:
    """Return this environment's modules that a base install, or an extra, does not contain."""
    extras = PROJECT["optional-dependencies"]
    installed = installed_by(PROJECT["dependencies"] + (extras[extra] if extra else []))
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not {normalised(owner) for owner in owners} & (installed | {PROJECT["name"]})
    }


def run_with_only(extra: str | None, program: str, *arguments: str) -> str:
    """Run a program that finds no other packages; return its output."""
    source = _RUN_WITHOUT.format(absent=absent_modules(extra), program=program)
    command = [sys.executable, "-c", source, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMAND_LINE = "from batchmill.worker.cli import main; main()"


def test_modules_outside_an_extra_cannot_be_imported() -> None:
    assert {"torch", "celery", "kombu", "transformers", "h11", "flower"} <= absent_modules(None)
    assert "h11" not in absent_modules("deliverer")
    with pytest.raises(AssertionError, match="not part of this install"):
        run_with_only(None, "import celery")


def test_the_base_install_submits_and_watches_jobs(redis_url: str) -> None:
    job_id = run_with_only(None, COMMAND_LINE, "submit", "hello", "--broker-url", redis_url).strip()
    shown = run_with_only(None, COMMAND_LINE, "status", job_id, "--broker-url", redis_url, "--json")
    assert '"state": "queued"' in shown
    run_with_only(None, COMMAND_LINE, "cancel", job_id, "--broker-url", redis_url)
    run_with_only(None, "from batchmill.producer import AsyncClient, verify_webhook")


def test_the_base_install_shows_the_help_of_commands_that_it_cannot_run() -> None:
    for name in ("worker", "deliver", "doctor"):
        assert "Usage" in run_with_only(None, COMMAND_LINE, name, "--help")


def test_the_deliverer_extra_runs_the_deliverer() -> None:
    run_with_only(
        "deliverer", "from batchmill.worker.webhooks.deliverer_process import run_deliverer"
    )
    secret = run_with_only("deliverer", COMMAND_LINE, "webhook-secret")
    assert secret.startswith("whsec_")


def test_the_worker_extra_runs_a_worker() -> None:
    program = (
        "import batchmill.worker.consumer.app_factory, "
        "batchmill.worker.engine_host.real_engine, batchmill.engine.engine"
    )
    run_with_only("worker", program)
