"""Runs one Flower per shard as child processes, because a Flower watches one Celery broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from batchmill.producer.shard_list import ShardList
from batchmill.worker.engine_host.die_with_parent import die_with_parent_command
from batchmill.worker.service_errors import ChildFailed

_DEFAULT_PORT = 5555
_LOOK_S = 0.2
_STOP_S = 20.0
#: Variables that name the broker; the children get the list and the name of their shard.
_BROKER_VARIABLES = (
    *("BATCHMILL_BROKER_URL", "BATCHMILL_BROKER_URL_FILE"),
    *("BATCHMILL_BROKER_URLS", "BATCHMILL_BROKER_URLS_FILE"),
)


def run_flower_per_shard(url: str, shards: ShardList, arguments: Sequence[str]) -> None:
    """Run a Flower for each shard, at consecutive ports, until SIGTERM or Ctrl-C.

    Args:
        url: the list of shards.
        shards: the same, read.
        arguments: Flower's own options. The port is that of the first shard; a file of its history
            gets the name of the shard at its end.

    Raises:
        ChildFailed: one of them ended by itself; the others are stopped.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    children: dict[str, subprocess.Popen[bytes]] = {}
    environment = {
        name: value for name, value in os.environ.items() if name not in _BROKER_VARIABLES
    }
    try:
        for place, shard in enumerate(shards.shards):
            options = options_of_shard(arguments, os.environ, shard.name, place)
            print(f"shard {shard.name}: Flower at port {options[-1].partition('=')[2]}", flush=True)
            children[shard.name] = subprocess.Popen(
                [
                    *die_with_parent_command(signal.SIGTERM),
                    *(sys.executable, "-m", "batchmill.worker.cli", "flower", *options),
                ],
                env=environment | {"BATCHMILL_BROKER_URLS": url, "BATCHMILL_SHARD": shard.name},
            )
        while all(child.poll() is None for child in children.values()):
            time.sleep(_LOOK_S)
        name, code = next((n, c.returncode) for n, c in children.items() if c.poll() is not None)
        raise ChildFailed(f"the Flower of shard {name} ended with {code}; its output says why")
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        _stop(list(children.values()))


def options_of_shard(
    arguments: Sequence[str], environ: Mapping[str, str], name: str, place: int
) -> list[str]:
    """Return Flower's options for a shard; the last one is its port.

    Raises:
        ChildFailed: the port is not a number.
    """
    given = dict(
        argument.lstrip("-").partition("=")[::2]
        for argument in arguments
        if argument.startswith("--") and "=" in argument
    )
    port = given.get("port") or environ.get("FLOWER_PORT") or str(_DEFAULT_PORT)
    if not port.isdecimal():
        raise ChildFailed(f"--port={port[:20]}: with several shards it must be the first port")
    history = given.get("db") or environ.get("FLOWER_DB") or "flower"
    return [*arguments, f"--db={history}-{name}", f"--port={int(port) + place}"]


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    ends_at = time.monotonic() + _STOP_S
    for child in children:
        try:
            child.wait(max(0.0, ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
