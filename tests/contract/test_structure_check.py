"""The check of structures: what passes a limit is refused, and the process that asks lives on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from batchmill.engine.contract import structure_check
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.grammar import grammar_of

PATTERNS = [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrst"]


def rule_chain(num_rules: int, body: str = "{next}") -> str:
    rules = [f"a{i}: " + body.format(next=f"a{i + 1}") for i in range(num_rules)]
    return "\n".join(["start: a0", *rules, f'a{num_rules}: "y"'])


BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "rules that fill the stack": ({"grammar": rule_chain(1000)}, "MB of stack"),
    "rules that branch": ({"grammar": rule_chain(1000, '{next} {next} | "x"')}, "MB of stack"),
    "too many rules": ({"grammar": rule_chain(3000)}, "3002 rules, the limit is 1024"),
    "a wide automaton": ({"json": {"type": "integer", "multipleOf": 9999991}}, "s of CPU|than 8 s"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_structure_that_passes_a_limit_is_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure, limit = BOMBS[what]

    with pytest.raises(ContractError, match=limit) as caught:
        grammar_of(None, structure)

    assert caught.value.code == "structure_too_complex"
    with monkeypatch.context() as patch:
        patch.setattr(structure_check._Checker, "_check", lambda *_: pytest.fail("checked again"))
        with pytest.raises(ContractError, match=limit):
            grammar_of(None, structure)
    assert grammar_of(None, {"regex": f"[a-z]{{{len(what)}}}"})


def test_ordinary_structures_of_any_size_are_accepted() -> None:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(30):
        nested = {"type": "object", "properties": {"inner": nested}, "required": ["inner"]}
    names = [f"property {number}" for number in range(500)]
    wide = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}

    for schema in (nested, {**wide, "required": names}, {"enum": names}):
        assert grammar_of(None, {"json": schema})
    assert grammar_of(None, {"choice": [f"choice {number}" for number in range(4096)]})


@pytest.mark.parametrize(
    "terms",
    ['<[50001]> "a"', '"a" <|im_end|>', "<[10-200000]>", "<\uff5cend\u2581of\uff5c> A\nA: /<b>/"],
)
def test_tokens_of_a_vocabulary_that_only_the_model_knows_are_accepted(terms: str) -> None:
    assert grammar_of(None, {"grammar": f"start: {terms}"})


def test_a_bomb_beside_a_special_token_is_refused() -> None:
    bomb = "start: <|im_end|> x\nx: %json " + json.dumps({"allOf": PATTERNS})

    with pytest.raises(ContractError) as caught:
        grammar_of(None, {"grammar": bomb})

    assert caught.value.code == "structure_too_complex"


def test_a_check_process_that_something_else_kills_is_replaced() -> None:
    grammar_of(None, {"regex": "before"})
    checking = structure_check._checker._idle[-1]

    os.kill(checking._process.pid, signal.SIGKILL)

    assert grammar_of(None, {"regex": "after"})


def test_threads_check_at_once() -> None:
    verdicts: list[str | None] = []

    def check(number: int) -> None:
        verdicts.append(grammar_of(None, {"regex": f"thread {number}"}))

    threads = [threading.Thread(target=check, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(set(verdicts)) == 16
    assert len(structure_check._checker._all) <= 2


def test_a_forked_process_checks_with_a_process_of_its_own() -> None:
    program = (
        "import os\n"
        "from batchmill.engine.contract import structure_check\n"
        "from batchmill.engine.contract.grammar import grammar_of\n"
        "grammar_of(None, {'regex': 'a'})\n"
        "(first,) = structure_check._checker._all\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    grammar_of(None, {'regex': 'b'})\n"
        "    (second,) = structure_check._checker._all\n"
        "    os._exit(0 if second._process.pid != first._process.pid else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "grammar_of(None, {'regex': 'c'})\n"
        "assert structure_check._checker._all == {first}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_check_process_ends_with_its_parent() -> None:
    program = (
        "import os, signal\n"
        "from batchmill.engine.contract import structure_check\n"
        "from batchmill.engine.contract.grammar import grammar_of\n"
        "grammar_of(None, {'regex': 'a'})\n"
        "(checking,) = structure_check._checker._all\n"
        "print(checking._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=False
    ).stdout

    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(output)):
        try:
            if psutil.Process(int(output)).status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        assert time.monotonic() < deadline, "the check process outlived its parent"
        time.sleep(0.02)


def test_an_embedded_interpreter_starts_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    checker = structure_check._Checker()
    monkeypatch.setattr(structure_check, "_checker", checker)

    try:
        assert grammar_of(None, {"regex": "embedded"})
    finally:
        checker.close()


def test_a_machine_that_can_start_no_process_refuses_structures_for_now(
    no_check_process: None,
) -> None:
    with pytest.raises(ContractError, match="cannot be started") as caught:
        grammar_of(None, {"regex": "never checked"})
    assert caught.value.code == structure_check.UNAVAILABLE
