"""Every program of the Kubernetes manifests starts as its manifest says, and answers its probes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis

from batchmill.producer import Client, new_secret
from batchmill.producer.protocol import keys

from ..conftest import RedisServer
from ..structure.public_interface import ROOT
from ..support.manifests import Manifest, manifests
from ..support.processes import STUB, free_port, wait_until

#: The worker of a GPU differs in its device only.
DEPLOYMENTS = [each for each in manifests("Deployment") if each.folder != "worker-gpu"]


def environment_of(deployment: Manifest) -> dict[str, str]:
    """Return the variables of a container, as the cluster would set them."""
    container = deployment.container
    requested = container["resources"]["requests"]
    variables = {}
    for each in container["env"]:
        source = each.get("valueFrom", {}).get("resourceFieldRef")
        variables[each["name"]] = each["value"] if source is None else requested["cpu"]
    if "envFrom" in container:
        settings = ROOT / "compose" / "kubernetes" / "base" / "settings.env"
        lines = [line for line in settings.read_text().splitlines() if not line.startswith("#")]
        variables = dict(line.split("=", 1) for line in lines) | variables
    return variables


def write_secrets(folder: Path, url: str) -> None:
    folder.mkdir()
    for name, value in {
        "broker_url": url,
        "webhook_secret": new_secret(),
        "api_key": "sk-bm-" + "a1" * 20,
        "basic_auth": "name:password",
    }.items():
        (folder / name).write_text(value)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=str)
def test_a_program_starts_answers_its_probes_and_ends_in_time(
    deployment: Manifest, redis_url: str, tmp_path: Path
) -> None:
    container = deployment.container
    ports = {port["name"]: free_port() for port in container["ports"]}
    numbers = {str(port["containerPort"]): str(ports[port["name"]]) for port in container["ports"]}
    write_secrets(tmp_path / "secrets", redis_url)

    def placed(text: str) -> str:
        """Put the paths of the container and its ports where this test may use them."""
        text = text.replace("/run/secrets", str(tmp_path / "secrets"))
        text = text.replace("/files", str(tmp_path)).replace("/app/", f"{tmp_path}/")
        return "127.0.0.1" if text == "0.0.0.0" else numbers.get(text, text)

    variables = {name: placed(value) for name, value in environment_of(deployment).items()}
    if "flower" in str(deployment):
        variables["FLOWER_PORT"] = str(ports["http"])
    folder = Path(sys.executable).parent
    variables |= {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "BATCHMILL_RUNTIME_DIR": str(tmp_path),
        **(STUB if "worker" in str(deployment) else {"PYTHONSAFEPATH": "1"}),
    }
    kept = {key: value for key, value in os.environ.items() if key[:10] != "BATCHMILL_"}
    command = container.get("command") or ["batchmill", *container["args"]]
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [placed(word) for word in command],
            env={**kept, **variables},
            stdout=output,
            stderr=output,
        )
    try:
        for kind in ("livenessProbe", "readinessProbe"):
            probe: dict[str, Any] = container[kind]["httpGet"]
            url = f"http://127.0.0.1:{ports[probe['port']]}{probe['path']}"

            def is_well(url: str = url) -> bool:
                assert child.poll() is None, log.read_text()
                return status_of(url) == 200

            wait_until(is_well, f"the {kind} of {deployment}")
        child.send_signal(signal.SIGTERM)
        grace_s = deployment.pod["terminationGracePeriodSeconds"]
        assert child.wait(timeout=grace_s) in (0, -signal.SIGTERM), log.read_text()
    finally:
        child.kill()
        child.wait()
    assert "unknown_setting" not in log.read_text()


def test_the_user_of_the_autoscaler_counts_jobs_and_does_nothing_else(tmp_path: Path) -> None:
    rules = (ROOT / "compose" / "users.acl").read_text()
    # The fixture asks as the default user whether the server has started.
    rules = rules.replace("user default off", "user default on nopass ~* &* +@all")
    (tmp_path / "users.acl").write_text(rules)
    server = RedisServer("--aclfile", str(tmp_path / "users.acl"))
    server.start()
    try:
        with Client(server.url) as client:
            client.submit("hi")
        keda: Any = redis.Redis.from_url(
            server.url, username="keda", password="PASSWORD", decode_responses=True
        )
        assert keda.ping()
        # The scaler asks for the type, and then for the length of what it is.
        script = """if redis.call('type', KEYS[1]).ok == 'zset' then
            return redis.call('zcard', KEYS[1])
        end
        return redis.call('llen', KEYS[1])"""
        queue = keys.queued(keys.queue_name("demo", "normal"))
        assert keda.eval(script, 1, queue) == 1
        assert keda.eval(script, 1, keys.queued(keys.queue_name("demo", "low"))) == 0
        for command in (("ZRANGE", queue, 0, -1), ("GET", "batchmill:usage"), ("DEL", queue)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                keda.execute_command(*command)
        keda.close()
    finally:
        server.close()
