"""Triton implementations that are imported at their first call, and arguments that agree."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch

from batchmill.kernels import ops
from batchmill.kernels.errors import TritonMissingError
from batchmill.kernels.ops.dispatch import LazyTriton, lazy_triton

MODULES = [
    import_module(f"batchmill.kernels.ops.{module.name}")
    for module in pkgutil.iter_modules(ops.__path__)
]
WITH_CPP = {
    f"{module.__name__.rpartition('.')[2]}.{name}": table
    for module in MODULES
    for name, table in vars(module).items()
    if isinstance(table, dict) and {"reference", "cpp"} <= table.keys()
}
LAZY = {
    f"{module.__name__.rpartition('.')[2]}.{found._name}": found
    for module in MODULES
    for value in vars(module).values()
    for found in (value.values() if isinstance(value, dict) else [value])
    if isinstance(found, LazyTriton)
}
#: Chosen by the caller of several ops, not an argument of the kernel that fuses them.
NOT_PASSED_ON = {"backend"}


def shapes_of(parameters: list[Parameter]) -> list[tuple[str, bool]]:
    return [(each.name, each.kind is Parameter.KEYWORD_ONLY) for each in parameters]


def test_all_implementations_are_compared() -> None:
    assert (len(LAZY), len(WITH_CPP)) == (20, 9)


@pytest.mark.parametrize("name", LAZY)
def test_a_triton_function_takes_the_arguments_of_its_reference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; `make setup` installs it on Linux")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernels are first imported
    reference = [
        each
        for each in signature(LAZY[name].like).parameters.values()
        if each.name not in NOT_PASSED_ON
    ]
    found = list(signature(LAZY[name].import_function()).parameters.values())
    assert shapes_of(found[: len(reference)]) == shapes_of(reference)
    assert all(each.default is not Parameter.empty for each in found[len(reference) :])


@pytest.mark.parametrize("name", WITH_CPP)
def test_a_cpp_function_takes_arguments_of_its_reference_in_their_order(name: str) -> None:
    table = WITH_CPP[name]
    reference = shapes_of(list(signature(table["reference"]).parameters.values()))
    found = shapes_of(list(signature(table["cpp"]).parameters.values()))
    assert found.pop() == ("library", True)
    assert found == [each for each in reference if each in found]


def test_a_triton_kernel_without_triton_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel_of_this_test.py").write_text("import triton\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    compute = lazy_triton("kernel_of_this_test", "rms_norm_triton", like=torch.relu)
    with pytest.raises(TritonMissingError, match=r"rms_norm_triton .*install batchmill\[gpu\]"):
        compute(torch.ones(1))


def test_another_module_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel_with_a_mistake.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    compute = lazy_triton("kernel_with_a_mistake", "rms_norm_triton", like=torch.relu)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        compute(torch.ones(1))
