"""Cached launches: what they look up by, and what they pass on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.gpu import launch
from batchmill.kernels.gpu.launch import CachedLaunch


class Kernel:
    """Stands for Triton's kernel, which it calls for each kind of arguments once."""

    arg_names = ("out", "x", "size", "eps", "BLOCK", "IS_GELU")

    def __init__(self) -> None:
        self.first: list[tuple[Any, ...]] = []
        self.cached: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def first(*args: Any, **settings: Any) -> Any:
            self.first.append((grid, args, settings))
            return SimpleNamespace(
                run=lambda *args: self.cached.append(args), function="f", packed_metadata="m"
            )

        return first


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    active = SimpleNamespace(get_current_stream=lambda device: 7)
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))
    return Kernel()


def test_second_launch_of_a_kind_passes_pointers_and_constants_in_the_kernels_order(
    kernel: Kernel,
) -> None:
    out, x = torch.empty(64), torch.empty(64)
    cached = CachedLaunch(kernel)
    settings = {"IS_GELU": True, "BLOCK": 32, "num_warps": 4}
    cached((5,), (out, x), (48, 0.5), **settings)
    cached((6, 2), (x, out), (64, 0.5), **settings)
    assert kernel.first == [((5,), (out, x, 48, 0.5), settings)]
    pointers = (x.data_ptr(), out.data_ptr())
    assert kernel.cached == [(6, 2, 1, 7, "f", "m", None, None, None, *pointers, 64, 0.5, 32, True)]


def test_whatever_triton_compiles_for_is_a_kind_of_its_own(kernel: Kernel) -> None:
    out, x = torch.empty(64), torch.empty(64)
    cached = CachedLaunch(kernel)
    kinds: list[tuple[tuple[torch.Tensor, ...], tuple[int | float, ...], dict[str, Any]]] = [
        ((out, x), (16, 0.5), {"BLOCK": 32, "IS_GELU": True}),
        ((out, x[1:]), (16, 0.5), {"BLOCK": 32, "IS_GELU": True}),
        ((out, x.to(torch.float16)), (16, 0.5), {"BLOCK": 32, "IS_GELU": True}),
        ((out, x), (1, 0.5), {"BLOCK": 32, "IS_GELU": True}),
        ((out, x), (17, 0.5), {"BLOCK": 32, "IS_GELU": True}),
        ((out, x), (2**31 + 1, 0.5), {"BLOCK": 32, "IS_GELU": True}),
        ((out, x), (16, 0.5), {"BLOCK": 64, "IS_GELU": True}),
        ((out, x), (16, 0.5), {"BLOCK": 32, "IS_GELU": False}),
    ]
    for _ in range(2):
        for tensors, numbers, settings in kinds:
            cached((1,), tensors, numbers, **settings)
    assert len(kernel.first) == len(kernel.cached) == len(kinds)


def test_kernel_that_is_interpreted_or_recorded_is_never_cached() -> None:
    calls: list[tuple[Any, ...]] = []

    class Recorded:
        arg_names = ("out",)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **settings: calls.append(args)

    cached = CachedLaunch(Recorded())
    for _ in range(2):
        cached((1,), (torch.empty(4, device="meta"),), num_warps=1)
    assert len(calls) == 2
