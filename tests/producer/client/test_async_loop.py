"""What may take long is done on a thread, so that the event loop goes on; short work is not."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import pytest
from pydantic import SecretStr

from batchmill.producer import AsyncClient
from batchmill.producer.client import async_client, job_groups
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import sealing

from ...support.pictures import data_url, png

LARGE_CHARS = 300_000


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """Whether each check and each sealing so far ran in the loop, which is in the main thread."""
    found: dict[str, list[bool]] = {"checked": [], "sealed": []}

    def noting(name: str, function: Any) -> Any:
        def noted(*args: Any) -> Any:
            found[name].append(threading.current_thread() is threading.main_thread())
            return function(*args)

        return noted

    check = noting("checked", job_groups.prepared_job)
    monkeypatch.setattr(job_groups, "prepared_job", check)
    monkeypatch.setattr(async_client, "prepared_job", check)
    monkeypatch.setattr(sealing, "resolved_args", noting("sealed", sealing.resolved_args))
    return found


def fields_of(kind: str) -> Any:
    match kind:
        case "short":
            return {"prompt": "p"}
        case "large":
            return {"prompt": "p" * LARGE_CHARS}
        case "picture":
            part = {"type": "image_url", "image_url": {"url": data_url(png())}}
            return {"messages": [{"role": "user", "content": [part]}]}
        case _:
            return {"prompt": "p", "response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("kind", "is_checked_in_loop", "is_sealed_in_loop"),
    [
        pytest.param("short", True, True, id="short"),
        pytest.param("large", True, False, id="large"),
        pytest.param("picture", False, True, id="picture"),
        pytest.param("structure", False, True, id="structure"),
    ],
)
@pytest.mark.parametrize("is_many", [False, True], ids=["one", "many"])
def test_the_loop_is_free_while_large_content_is_read_and_sealed(
    redis_url: str,
    places: dict[str, list[bool]],
    kind: str,
    is_checked_in_loop: bool,
    is_sealed_in_loop: bool,
    is_many: bool,
) -> None:
    secret = f"k1:{base64.b64encode(bytes(32)).decode()}"

    async def submit() -> None:
        settings = ProducerSettings(encryption_keys=SecretStr(secret))
        async with AsyncClient(redis_url, settings=settings) as client:
            if is_many:
                await client.submit_many([fields_of(kind)])
            else:
                await client.submit(**fields_of(kind))

    asyncio.run(submit())
    assert places["checked"] == [is_checked_in_loop]
    assert is_sealed_in_loop in places["sealed"]
    assert places["sealed"][-1] is is_sealed_in_loop
