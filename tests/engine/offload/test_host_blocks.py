"""Copies between a KV cache and host memory, at once and through the staging buffer of a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from batchmill.engine.errors import ConfigError
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.offload.host_blocks import HostBlocks

from ..execution.cuda_stand_in import Stream


def cache(dtype: torch.dtype = torch.float32, head_dim: int = 8) -> KVCache:
    """A cache of 24 blocks whose bytes are all different from block to block."""
    kv_cache = KVCache(
        num_layers=3,
        num_blocks=24,
        block_size=4,
        num_kv_heads=2,
        head_dim=head_dim,
        dtype=dtype,
        device="cpu",
    )
    generator = torch.Generator().manual_seed(0)
    for layer in kv_cache.layers:
        for tensor in layer:
            content = tensor.view(torch.uint8)
            content.copy_(
                torch.randint(0, 120, content.shape, generator=generator, dtype=torch.uint8)
            )
    return kv_cache


def bytes_of(kv_cache: KVCache, block_id: int) -> list[torch.Tensor]:
    return [
        tensor.view(torch.uint8)[block_id].clone() for layer in kv_cache.layers for tensor in layer
    ]


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.float32, 8), (torch.bfloat16, 8), (torch.float8_e4m3fn, 8), (torch.float8_e4m3fn, 1)],
)
def test_blocks_come_back_bit_by_bit_in_other_places(
    dtype: torch.dtype, head_dim: int, stages: bool
) -> None:
    kv_cache = cache(dtype, head_dim)
    addresses = [tensor.data_ptr() for layer in kv_cache.layers for tensor in layer]
    host = HostBlocks(kv_cache, 32, stages=stages)
    # More than the staging buffer has, in no order.
    sources, slots = [3, 1, 20, 7, 9, 0, 22, 5, 4, 2, 17], [30, 2, 9, 0, 31, 8, 7, 6, 5, 4, 3]
    targets = [6, 8, 10, 11, 12, 13, 14, 15, 16, 18, 19]
    expected = [bytes_of(kv_cache, each) for each in sources]
    untouched = bytes_of(kv_cache, 21)

    host.store(sources, slots)
    kv_cache.zero_blocks(sources)
    host.restore(targets, slots)

    for block_id, content in zip(targets, expected, strict=True):
        assert all(map(torch.equal, bytes_of(kv_cache, block_id), content))
    assert all(map(torch.equal, bytes_of(kv_cache, 21), untouched))
    assert addresses == [tensor.data_ptr() for layer in kv_cache.layers for tensor in layer]
    assert host.num_bytes == 32 * kv_cache.block_bytes


def test_measuring_the_speed_of_copies_leaves_the_cache_as_it_is() -> None:
    kv_cache = cache()
    before = [bytes_of(kv_cache, each) for each in range(24)]
    assert HostBlocks(kv_cache, 8).measured_bytes_per_s() > 0
    for block_id, content in enumerate(before):
        assert all(map(torch.equal, bytes_of(kv_cache, block_id), content))


def test_the_other_ranks_hear_of_each_copy() -> None:
    host = HostBlocks(cache(), 8)
    heard: list[tuple[str, list[int], list[int]]] = []
    host.on_store = lambda block_ids, slots: heard.append(("store", [*block_ids], [*slots]))
    host.on_restore = lambda block_ids, slots: heard.append(("restore", [*block_ids], [*slots]))
    host.store((1, 2), (3, 4))
    host.restore((5,), (4,))
    assert heard == [("store", [1, 2], [3, 4]), ("restore", [5], [4])]


def test_memory_that_cannot_be_mapped_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"kv_host_bytes asks for .* refuses to map it"):
        HostBlocks(cache(), 2**44)


def test_memory_that_cannot_be_page_locked_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Runtime:
        def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
            assert address
            assert num_bytes
            return 2

    host = HostBlocks(cache(), 8)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    with pytest.raises(ConfigError, match=r"page-lock it \(cudaHostRegister returned 2\)"):
        host._page_lock()


def test_on_a_gpu_copies_have_a_stream_that_steps_wait_for_and_that_waits_for_zeros(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = HostBlocks(cache(), 8, stages=True)
    steps, copies, current = Stream(), Stream(), []

    class On:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current.append(self.stream)

        def __exit__(self, *error: object) -> None:
            current.pop()

    monkeypatch.setattr(host, "_stream", copies)
    monkeypatch.setattr(torch.cuda, "stream", On)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: current[-1] if current else steps
    )
    streams: list[Stream] = []

    def upload(numbers: Sequence[int]) -> torch.Tensor:
        streams.append(current[-1])
        return torch.tensor(numbers)

    monkeypatch.setattr(host, "_upload", upload)

    host.store([1], [2])
    host.restore([3], [2])
    assert streams == [copies, copies]
    assert steps.waited_for == [copies, copies]
    assert copies.waited_for == []  # a step in flight runs beside the copies
    host.wait_for_zeros()
    assert copies.waited_for == [steps]
