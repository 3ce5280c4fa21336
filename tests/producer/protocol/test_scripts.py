"""Scripts carry what they need of the shared parts, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import batchmill.producer.protocol.scripts
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source

FOLDER = Path(batchmill.producer.protocol.scripts.__file__).parent / "lua"
DEFINITION = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)
SHARED = set(DEFINITION.findall("\n".join(path.read_text() for path in FOLDER.rglob("*.lua"))))


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_every_shared_name_that_a_script_uses_is_defined_in_it(name: str) -> None:
    source = re.sub(r"--.*", "", script_source(name))
    called = set(re.findall(r"(?<![.:\w])([a-z_]\w*)\(", source))
    constants = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", re.sub(r"'[^']*'", "", source)))
    defined = set(re.findall(r"\blocal (?:function )?(\w+)", source))
    assert ((called | constants) & SHARED) <= defined


def test_a_script_leaves_out_what_it_does_not_use() -> None:
    assert "put_back" not in script_source("renew")
    assert "put_back" in script_source("release")


def test_an_unknown_script_is_an_error() -> None:
    with pytest.raises(KeyError, match="there are"):
        script_source("nothing")
