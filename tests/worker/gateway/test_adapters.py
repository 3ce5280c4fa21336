"""LoRA adapters through the gateway: as the model of a request, in the list, per tenant."""

from __future__ import annotations

from typing import Any

import openai as sdk
import pytest
from openai import OpenAI

from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter, remove_adapter

from ...support.processes import wait_until
from .conftest import Site

HELLO: Any = [{"role": "user", "content": "hello"}]
DIGEST = "0" * 32


def test_an_adapter_is_a_model_of_its_tenants(site: Site, openai: OpenAI) -> None:
    store = site.mill.store
    style = RegisteredAdapter(name="style", digest=DIGEST, model="demo")
    register_adapter(store, style)
    register_adapter(store, style.model_copy(update={"name": "others", "tenants": ("others",)}))

    def listed() -> dict[str, Any]:
        return {each.id: each.model_dump() for each in openai.models.list()}

    wait_until(lambda: "style" in listed(), "the list of models")
    assert listed()["style"]["parent"] == "demo"
    assert "others" not in listed()
    assert openai.models.retrieve("style").model_dump()["parent"] == "demo"
    # The stub computes none: that it says so shows that the job reached it with the adapter.
    with pytest.raises(sdk.APIStatusError, match="the stub engine computes none"):
        openai.chat.completions.create(model="style", messages=HELLO, max_tokens=2)
    named: Any = {"model": "demo", "messages": HELLO, "extra_body": {"lora": "style"}}
    with pytest.raises(sdk.APIStatusError, match="the stub engine computes none"):
        openai.chat.completions.create(**named)
    with pytest.raises(sdk.NotFoundError):
        openai.chat.completions.create(model="others", messages=HELLO, max_tokens=2)
    for name in ("style", "others"):
        remove_adapter(store, name)
