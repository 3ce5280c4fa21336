"""The compose file and the images fit the code: commands, settings, files, confinement."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from batchmill.worker.webhooks.settings import WebhookSettings

from ..conftest import RedisServer
from .public_interface import FOLDERS, ROOT, named_variables, problem_of_call, variable_names

COMPOSE = ROOT / "compose"
DOCKERFILES = sorted(COMPOSE.glob("*.Dockerfile"))
SERVICES: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
OURS = sorted(set(SERVICES) - {"redis"})
BIN = Path(sys.executable).parent
every_image = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def run(*command: object) -> str:
    """Run a checker; return its output, or fail and show it."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def instructions(dockerfile: Path, name: str) -> list[str]:
    """Return the arguments of every instruction of one kind, with continued lines joined."""
    joined = dockerfile.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def test_compose_file_follows_the_compose_specification() -> None:
    run(
        BIN / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        COMPOSE / "compose.yaml",
    )


@every_image
def test_dockerfile_passes_hadolint(dockerfile: Path) -> None:
    assert run(BIN / "hadolint", "--no-color", dockerfile) == ""


@every_image
def test_every_copied_file_exists_and_reaches_the_build(dockerfile: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    for copy in instructions(dockerfile, "COPY"):
        if "--from=" in copy:
            continue
        *sources, _ = copy.split()
        assert [name for name in sources if not (ROOT / name).exists()] == []
        assert [name for name in sources if name.removeprefix("./") not in allowed] == []


@every_image
def test_images_contain_every_folder(dockerfile: Path) -> None:
    copied = {source for copy in instructions(dockerfile, "COPY") for source in copy.split()[:-1]}
    assert set(FOLDERS) <= copied


@every_image
def test_images_run_unprivileged_and_outside_the_source(dockerfile: Path) -> None:
    assert instructions(dockerfile, "USER")[-1] == "10001:10001"
    assert instructions(dockerfile, "WORKDIR")[-1] == "/app"
    assert "PYTHONSAFEPATH=1" in " ".join(instructions(dockerfile, "ENV"))


@every_image
def test_extras_that_an_image_installs_exist(dockerfile: Path) -> None:
    installed = re.findall(r'"/source\[([\w,]+)\]"', dockerfile.read_text())
    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {extra for extras in installed for extra in extras.split(",")} <= set(declared)


@pytest.mark.parametrize("service", OURS)
def test_service_commands_exist(service: str) -> None:
    wanted = SERVICES[service].get("command")
    if wanted is not None:
        assert problem_of_call(wanted) is None


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_has_a_healthcheck_that_can_run(service: str) -> None:
    kind, *words = SERVICES[service]["healthcheck"]["test"]
    assert kind in {"CMD", "CMD-SHELL"}
    if words[0] == "batchmill":
        assert problem_of_call(words[1:]) is None


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_is_confined(service: str) -> None:
    described = SERVICES[service]
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["user"] not in {"0", "0:0", "root"}
    assert described["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_published_ports_are_bound_to_loopback(service: str) -> None:
    ports = SERVICES[service].get("ports", [])
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("path", sorted(COMPOSE.iterdir()), ids=lambda path: path.name)
def test_variables_that_a_file_names_exist(path: Path) -> None:
    assert named_variables(path.read_text()) - variable_names() == set()


def test_every_webhook_setting_reaches_the_deliverer() -> None:
    given = {name for name in SERVICES["deliverer"]["environment"] if "_WEBHOOK_" in name}
    assert given == {f"BATCHMILL_{name.upper()}" for name in WebhookSettings.model_fields}


def test_the_example_environment_names_every_variable_of_the_compose_file() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    example = (COMPOSE / ".env.example").read_text()
    offered = set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE))
    assert used == offered
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert required == set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE))


def test_redis_starts_with_our_configuration_and_never_evicts(tmp_path: Path) -> None:
    # Paths and the port belong to the container; all other lines are used unchanged.
    lines = (COMPOSE / "redis.conf").read_text().splitlines()
    kept = [line for line in lines if line and line.split()[0] not in {"#", "dir", "port"}]
    options = [word for line in kept for word in shlex.split("--" + line)]
    server = RedisServer(*options)
    server.start()
    try:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        settings: Any = client.config_get("maxmemory*", "append*")
        client.close()
    finally:
        server.close()
    assert settings["maxmemory-policy"] == "noeviction"
    assert int(settings["maxmemory"]) > 0
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
