"""Every error code of the tree is in the registry, once, with its meaning and its remedy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from batchmill.producer import errors
from batchmill.producer.error_codes import SUBMIT
from batchmill.producer.job.retry import RETRYABLE_CODES
from batchmill.worker.cli.errors import _snake
from batchmill.worker.error_codes import ALL_ERROR_CODES
from batchmill.worker.errors import WorkerError
from batchmill.worker.service_errors import ServiceError
from batchmill.worker.webhooks.reasons import all_reasons

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"[a-z]+(_[a-z]+)*")
#: Classes that take a code as an argument without a name.
TAKE_CODES = {"ContractError", "JobError", "JobFailed", "MalformedMessage", "RequestError"}
#: Values of `code` that are states, from which codes are made.
NOT_CODES = {"cancelling", "expired"}


def used_codes() -> Iterator[tuple[str, str]]:
    """Yield every code that the source names, and its file."""
    for folder in ("producer", "worker", "engine"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                for value in code_values(node):
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield value.value, path.name
    for path in (ROOT / "producer").rglob("*.lua"):
        for code in re.findall(r"error_json\('(\w+)'", path.read_text()):
            yield code, path.name


def code_values(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions of a node that are codes."""
    if isinstance(node, ast.Call):
        named = [word.value for word in node.keywords if word.arg in ("code", "error_code")]
        if getattr(node.func, "id", getattr(node.func, "attr", "")) in TAKE_CODES:
            named += node.args
        for value in named:
            yield from ast.walk(value) if isinstance(value, ast.IfExp) else [value]  # type: ignore[misc]
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        if node.targets[0].id == "code":
            yield node.value
    elif isinstance(node, ast.arguments):
        for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
            if argument.arg == "code" and default is not None:
                yield default


def test_every_code_of_the_tree_is_registered() -> None:
    known = {each.code for each in ALL_ERROR_CODES}
    used = set(used_codes())
    assert len(used) > 60
    missing = {
        f"{code} in {name}"
        for code, name in used
        if CODE.fullmatch(code) and code not in known | NOT_CODES
    }
    assert missing == set()


def test_codes_are_unique_and_say_what_to_do() -> None:
    codes = [each.code for each in ALL_ERROR_CODES]
    assert len(codes) == len(set(codes))
    for each in ALL_ERROR_CODES:
        assert CODE.fullmatch(each.code)
        assert each.meaning.endswith("."), each.code
        assert each.remedy
        assert each.places


def test_every_exception_has_a_registered_code_with_the_same_word_on_retrying() -> None:
    registered = {each.code: each for each in ALL_ERROR_CODES}
    for kind in vars(errors).values():
        # The codes of jobs that ended or were refused are values of each exception.
        if isinstance(kind, type) and issubclass(kind, errors.BatchmillError):
            if issubclass(kind, errors.JobRejected | errors.JobUnfinished):
                continue
            entry = registered[kind.code]
            assert SUBMIT in entry.places
            assert entry.retryable is kind.retryable, kind


def test_errors_of_services_have_codes() -> None:
    known = {each.code for each in ALL_ERROR_CODES}
    kinds = [kind for base in (ServiceError, WorkerError) for kind in base.__subclasses__()]
    apart = {"broker_error", "malformed_message", "job_failed"}  # they have codes as values
    # Those of the gateway and its console become replies. They are seen only if it was imported.
    replies = {"api_error", "console_error"}
    assert {_snake(kind.__name__) for kind in kinds} - known - replies == apart


def test_every_reason_of_a_failed_delivery_is_explained() -> None:
    named = set()
    for folder in ("worker/webhooks", "producer/webhook"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    kind = getattr(node.func, "id", "")
                    word = {"SendOutcome": "error", "ForbiddenTarget": "reason"}.get(kind)
                    named |= {
                        each.value.value
                        for each in node.keywords
                        if each.arg == word and isinstance(each.value, ast.Constant)
                    }
    assert len(named) > 6
    assert named <= set(all_reasons())


def test_codes_that_workers_retry_are_retryable() -> None:
    retryable = {each.code for each in ALL_ERROR_CODES if each.retryable}
    assert set(RETRYABLE_CODES) <= retryable
