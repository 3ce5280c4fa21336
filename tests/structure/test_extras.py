"""Each extra installs enough: programs run with nothing but its distributions."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from batchmill.producer import Client
from batchmill.producer.install_hint import install_command
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.errors import ExitCode
from batchmill.worker.local.flower import Flower

from ..support.processes import CLI, free_port, process, ready_worker, run, wait_until
from .public_interface import ROOT

Only = Callable[[str | None], dict[str, str]]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: Python runs it at its start, and so does every process that it starts.
_SITE_CUSTOMIZE = """
import importlib.machinery, sys

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            return None
        return super().find_spec(name, path, target)

place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = Installed
"""


def installed_by(requirements: list[str]) -> set[str]:
    """Return all distributions that requirements install, directly or indirectly."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = normalised(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            further = map(Requirement, metadata.requires(name) or ())
            waiting += [
                each
                for each in further
                if each.marker is None or each.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in found}


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


@pytest.fixture(scope="module")
def only(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], dict[str, str]]:
    """Return the environment in which Python finds the packages of one extra and no others."""

    @cache
    def environment_of(extra: str | None) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("only")
        source = _SITE_CUSTOMIZE.format(absent=absent_modules(extra))
        (folder / "sitecustomize.py").write_text(source)
        return {"PYTHONPATH": str(folder)}

    return environment_of


def test_modules_outside_an_extra_cannot_be_imported(only: Only) -> None:
    assert {"torch", "celery", "kombu", "transformers", "h11", "flower"} <= absent_modules(None)
    assert "h11" not in absent_modules("deliverer")
    with pytest.raises(AssertionError, match="No module named 'celery'"):
        run("-c", "import celery", environment=only(None))


def test_the_base_install_submits_and_watches_jobs(redis_url: str, only: Only) -> None:
    address = ("--broker-url", redis_url)

    def call(*arguments: str) -> str:
        return run(*CLI, *arguments, *address, environment=only(None))

    job_id = call("submit", "hello").strip()
    assert '"state": "queued"' in call("status", job_id, "--json")
    call("cancel", job_id)
    program = "from batchmill.producer import AsyncClient, verify_webhook"
    run("-c", program, environment=only(None))


def test_the_base_install_shows_the_help_of_commands_that_it_cannot_run(only: Only) -> None:
    for name in ("worker", "deliver", "gateway", "doctor"):
        assert "Usage" in run(*CLI, name, "--help", environment=only(None))


@pytest.mark.parametrize(
    ("command", "part", "extra"),
    [
        (["worker"], "worker", "worker"),
        (["deliver"], "webhook deliverer", "deliverer"),
        (["bench", "engine"], "worker", "worker"),
        (["bench", "queue", "--own-stack"], "embedded broker", "embedded"),
        (["bench", "chaos"], "worker", "worker"),
        (["up", "--no-flower", "--no-gateway"], "embedded broker", "embedded"),
        (["demo", "--no-flower", "--no-gateway"], "embedded broker", "embedded"),
        (["webhooks", "test", "https://example.com"], "webhook deliverer", "deliverer"),
        (["metrics"], "metrics exporter", "metrics"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(
    only: Only, command: list[str], part: str, extra: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, *CLI, *command],
        env={
            **os.environ,
            **only(None),
            "PATH": "/nowhere",
            "BATCHMILL_STATE_DIR": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in result.stderr
    assert part in result.stderr
    assert install_command(extra) in result.stderr
    assert result.returncode in (ExitCode.CONFIG, ExitCode.BROKER)


def test_the_deliverer_extra_runs_the_deliverer(redis_url: str, only: Only, tmp_path: Path) -> None:
    secret = run(*CLI, "webhook-secret", environment=only("deliverer")).strip()
    assert secret.startswith("whsec_")
    log = tmp_path / "deliverer.log"
    environment = {
        **only("deliverer"),
        "BATCHMILL_BROKER_URL": redis_url,
        "BATCHMILL_WEBHOOK_SECRET": secret,
    }
    with process(*CLI, "deliver", environment=environment, log=log) as deliverer:

        def is_ready() -> bool:
            assert deliverer.poll() is None, log.read_text()
            return "deliverer_started" in log.read_text()

        wait_until(is_ready, "starting the deliverer")


def test_the_gateway_extra_runs_the_gateway(redis_url: str, only: Only, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    environment = {
        **only("gateway"),
        "BATCHMILL_BROKER_URL": redis_url,
        "BATCHMILL_GATEWAY_PORT": "0",
        "BATCHMILL_GATEWAY_FILES_URL": str(tmp_path / "files"),
    }
    with process(*CLI, "gateway", environment=environment, log=log) as gateway:

        def is_ready() -> bool:
            assert gateway.poll() is None, log.read_text()
            return "gateway_started" in log.read_text()

        wait_until(is_ready, "starting the gateway")


def test_the_worker_extra_runs_a_worker(redis_url: str, only: Only, tmp_path: Path) -> None:
    program = "import batchmill.worker.engine_host.real_engine, batchmill.engine.engine"
    run("-c", program, environment=only("worker"))
    store = JobStore.from_url(redis_url)
    with ready_worker(redis_url, store, tmp_path, only("worker")), Client(redis_url) as client:
        job = client.submit(prompt="hello", max_tokens=2)
        assert job.result(timeout_s=60).text
    store.close()


def test_the_monitor_extra_runs_flower(redis_url: str, only: Only, tmp_path: Path) -> None:
    flower, log = Flower(free_port(), tmp_path), tmp_path / "flower.log"
    broker = {"BATCHMILL_BROKER_URL": redis_url}
    environment = {**only("monitor"), **broker, **flower.environment()}
    with process(*CLI, "flower", environment=environment, log=log) as child:

        def is_ready() -> bool:
            assert child.poll() is None, log.read_text()
            return flower.is_healthy()

        wait_until(is_ready, "starting Flower")


def test_the_files_extra_reads_workbooks_and_parquet(only: Only, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("pyarrow")
    book = openpyxl.Workbook()
    book.active.append(["name"])
    book.active.append(["Mill"])
    book.save(tmp_path / "in.xlsx")
    template = ("--template", "{% if name %}About {{ name }}{% endif %}", "--dry-run")
    command = (*CLI, "bulk", str(tmp_path / "in.xlsx"), *template)
    assert "About Mill" in run(*command, environment=only("files"))
    with pytest.raises(AssertionError, match="needs jinja2, which is not installed: pip install"):
        run(*command, environment=only(None))
    run("-c", "import pyarrow.parquet", environment=only("files"))


def test_the_payloads_extra_stores_a_large_prompt(
    redis_url: str, only: Only, tmp_path: Path
) -> None:
    command = (*CLI, "submit", "large " * 100, "--broker-url", redis_url)
    given = {
        "BATCHMILL_PAYLOAD_URL": str(tmp_path / "objects"),
        "BATCHMILL_PAYLOAD_THRESHOLD_BYTES": "256",
    }
    job_id = run(*command, environment={**only("payloads"), **given}).strip()
    assert [path.name.split(".")[:2] for path in (tmp_path / "objects").iterdir()] == [
        [job_id, "doc"]
    ]
    with pytest.raises(AssertionError, match=r"`fsspec` is missing: pip install"):
        run(*command, environment={**only(None), **given})


def test_the_embedded_extra_runs_a_broker(only: Only, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from batchmill.worker.local.broker_config import BrokerConfig\n"
        "from batchmill.worker.local.embedded_broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker(BrokerConfig(Path(sys.argv[1])))\n"
        "broker.start()\n"
        "broker.stop()\n"
    )
    run("-c", program, str(tmp_path / "broker"), environment=only("embedded"))


@pytest.mark.parametrize("extra", ["worker", "monitor"])
def test_every_extra_that_runs_celery_asks_for_its_redis_transport(extra: str) -> None:
    requirements = map(Requirement, PROJECT["optional-dependencies"][extra])
    celery = [each for each in requirements if each.name == "celery"]
    assert [each.extras for each in celery] == [{"redis"}]
