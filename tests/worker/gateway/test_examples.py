"""The example programs of both stock clients run as they are, with only URL and key given."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ...structure.public_interface import ROOT
from .conftest import DEADLINE_S, Site


def run_example(site: Site, name: str) -> list[str]:
    """Run an example, and return the lines that it printed."""
    given = {
        "OPENAI_BASE_URL": site.url,
        "OPENAI_API_KEY": site.secret,
        "ANTHROPIC_BASE_URL": site.url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": site.secret,
    }
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        env=os.environ | given,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["openai_batch.py", "anthropic_batch.py"])
def test_a_batch_has_an_answer_for_every_question(site: Site, name: str) -> None:
    lines = run_example(site, name)
    assert [line.split()[0] for line in lines] == [f"question-{place}" for place in (1, 2, 3)]
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


def test_a_background_response_is_resumed_after_a_cut(site: Site) -> None:
    (line,) = run_example(site, "openai_background.py")
    assert line.startswith("incomplete ")
    assert len(line.split()) == 49
