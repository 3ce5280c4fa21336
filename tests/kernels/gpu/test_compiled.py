"""Every shipped Triton kernel, compiled without a GPU: spills, registers, instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from batchmill.kernels.cpu.library import cpp_is_usable
from batchmill.kernels.gpu.attention_tuning import attention_tuning, shared_memory_kib

TABLE = Path(__file__).parents[2] / "bench" / "kernel_table.py"
ARCHITECTURES = (80, 90, 100)
#: Registers of a multiprocessor, and the shared memory that it reserves per program.
REGISTERS_PER_SM = 65536
RESERVED_KIB = 1
#: The instruction that prefill must use; without it the kernel is correct but several times slower.
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}

#: Minutes, when another version of Triton compiles all of them again.
pytestmark = pytest.mark.timeout(1200)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows_of_all() -> list[Row]:
    """Return the compiled kernels' figures, from a process that does not interpret them.

    Most are stored, under a digest of the kernel and the compiler (`compiled_rows.py`).
    """
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(TABLE), "--json", "--stored"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    result: list[Row] = json.loads(done.stdout)
    return result


@pytest.fixture(params=ARCHITECTURES, ids="sm_{}".format)
def arch(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def rows(arch: int, rows_of_all: list[Row]) -> list[Row]:
    return [row for row in rows_of_all if row["arch"] == arch]


def names(rows: list[Row]) -> list[str]:
    return [f"{row['kernel']} for {row['shape']} on sm_{row['arch']}: {row}" for row in rows]


def of_kernel(rows: list[Row], kernel: str) -> list[Row]:
    return [row for row in rows if row["kernel"] == kernel]


def prefill_rows(rows: list[Row]) -> list[Row]:
    """Return the rows of both prefill kernels."""
    return [row for row in rows if row["kernel"].endswith("prefill_attention_kernel")]


def test_every_kernel_compiles(arch: int, rows: list[Row]) -> None:
    # sm_80 has no eight-bit floats.
    assert len({row["kernel"] for row in rows}) == (25 if arch >= 89 else 23)


def test_no_kernel_spills_registers_in_its_loops(rows: list[Row]) -> None:
    # float32 attention sits at the limit of 255: Triton 3.7.1 spills four of them on sm_80.
    looping = [row for row in rows if row["num_spills_in_loops"] and "float32" not in row["shape"]]
    assert not names(looping)
    # Across loops assemblers keep a few values in memory: newer ones to get down to 128 registers,
    # and all for eight-bit heads of 256 dimensions, whose queries are widened before the loop.
    assert not names([row for row in rows if row["spill_bytes"] > 64])


def test_spills_are_counted_in_innermost_loops_only() -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    from .launches import spills_in_loops

    lines = ["STL [R1], R7", "LDL R2, [R1]", "FADD R2, R2, R2", "@P0 BRA 0x10", "LDL R3, [R1+4]"]
    lines += ["@!P1 BRA 0x00", "STL.64 [R1], R4", "EXIT"]
    code = "".join(f"        /*{16 * n:04x}*/    {text} ;\n" for n, text in enumerate(lines))
    assert spills_in_loops(code) == 1


def test_every_kernel_fits_in_shared_memory(arch: int, rows: list[Row]) -> None:
    limit = shared_memory_kib(arch) * 1024
    assert not names([row for row in rows if row["shared_bytes"] > limit])


def test_prefill_uses_the_matrix_instruction_of_its_architecture(
    arch: int, rows: list[Row]
) -> None:
    prefill = prefill_rows(rows)
    assert len(prefill) >= 14
    missing = [
        row
        for row in prefill
        if "float32" not in row["shape"]  # its tiles are too low for it, or it would spill
        and MATRIX_INSTRUCTION[arch] not in row["matrix_instructions"]
    ]
    assert not names(missing)


def test_attention_uses_tensor_cores_and_overlaps_its_loads(rows: list[Row]) -> None:
    attention = [row for row in rows if row["kernel"].endswith("_attention_kernel")]
    assert not names([row for row in attention if not row["matrix_instructions"]])
    assert not names([row for row in attention if row["num_async_copies"] == 0])


def test_decode_holds_more_than_one_tile_of_keys_and_values_in_flight(rows: list[Row]) -> None:
    few = []
    for row in of_kernel(rows, "decode_attention_kernel"):
        constants = row["constants"]
        one_tile = 2 * constants["TILE"] * constants["BLOCK_D"] * row["kv_bytes"]
        if row["shared_bytes"] < 2 * one_tile:
            few.append(row)
    # float32 tiles have one buffer: two of them would leave room for one program.
    assert not names([row for row in few if "float32" not in row["shape"]])


def test_all_programs_of_decode_are_resident_at_once(arch: int, rows: list[Row]) -> None:
    crowded = []
    for row in of_kernel(rows, "decode_attention_kernel"):
        tuning = attention_tuning(
            arch,
            row["constants"]["HEAD_DIM"],
            row["kv_bytes"],
            block_size=row["constants"]["BLOCK_SIZE"],
            group=row["constants"]["GROUP"],
        ).decode
        registers = tuning.programs_per_sm * row["num_warps"] * 32 * row["num_registers"]
        shared = tuning.programs_per_sm * (row["shared_bytes"] / 1024 + RESERVED_KIB)
        if registers > REGISTERS_PER_SM or shared > shared_memory_kib(arch) + RESERVED_KIB:
            crowded.append(row)
    assert not names(crowded)


def test_a_program_of_split_prefill_fits_on_each_multiprocessor(rows: list[Row]) -> None:
    """They share all keys evenly, so all of them must be resident at once: one for each."""
    split = of_kernel(rows, "split_prefill_attention_kernel")
    assert len(split) >= 14
    crowded = [
        row for row in split if row["num_warps"] * 32 * row["num_registers"] > REGISTERS_PER_SM
    ]
    assert not names(crowded)


def test_matrix_instructions_of_prefill_overlap(rows: list[Row]) -> None:
    """With blocks of 16 to 64 tokens; ptxas reports a serialized one as C7515, and only then."""
    prefill = prefill_rows(rows)
    assert {row["constants"]["BLOCK_SIZE"] for row in prefill} >= {16, 32, 64}
    assert not names([row for row in prefill if row["num_matrix_waits_in_a_loop"] > 4])


def test_int4_weights_are_widened_without_conversions_for_products_that_overlap(
    arch: int, rows: list[Row]
) -> None:
    products = of_kernel(rows, "int4_linear_kernel")
    assert {row["constants"]["BLOCK_ROWS"] for row in products} == {16, 32, 64, 128}
    assert not names(
        [row for row in products if MATRIX_INSTRUCTION[arch] not in row["matrix_instructions"]]
    )
    assert not names([row for row in products if row["num_async_copies"] == 0])
    assert not names([row for row in products if row["num_slow_conversions"]])
    assert not names([row for row in products if row["num_matrix_waits_in_a_loop"] > 4])
    assert not names([row for row in products if row["spill_bytes"]])


def test_products_of_experts_use_tensor_cores_overlap_and_spill_nothing(
    arch: int, rows: list[Row]
) -> None:
    products = of_kernel(rows, "expert_linear_kernel")
    assert {row["constants"]["BLOCK_ROWS"] for row in products} == {16, 32, 64, 128}
    in_fp8 = [row for row in products if "fp8" in row["shape"]]
    assert len(in_fp8) == (8 if arch >= 89 else 0)
    instruction = {"HGMMA": "QGMMA", "UTCHMMA": "UTCQMMA"}.get(MATRIX_INSTRUCTION[arch])
    assert not names([row for row in in_fp8 if instruction not in row["matrix_instructions"]])
    others = [row for row in products if row not in in_fp8]
    assert not names(
        [row for row in others if MATRIX_INSTRUCTION[arch] not in row["matrix_instructions"]]
    )
    assert not names([row for row in products if row["num_async_copies"] == 0])
    half = [row for row in products if "float32" not in row["shape"]]
    assert not names([row for row in half if row["num_matrix_waits_in_a_loop"] > 4])
    assert not names([row for row in products if row["spill_bytes"]])


def test_an_eight_bit_cache_is_widened_two_numbers_at_a_time(rows: list[Row]) -> None:
    attention = [row for row in rows if row["kernel"].endswith("_attention_kernel")]
    eight_bit = [row for row in attention if row["kv_bytes"] == 1]
    assert not names([row for row in eight_bit if row["num_slow_conversions"]])


def test_elementwise_kernels_leave_room_for_many_warps(rows: list[Row]) -> None:
    """With 64 registers per thread half of a multiprocessor's warps can be resident."""
    kernels = {"write_kv_kernel", "apply_rope_kernel", "rope_and_cache_kernel", "rms_norm_kernel"}
    kernels |= {"gated_activation_kernel", "quantize_fp8_kernel", "sample_pick_kernel"}
    kernels |= {"plan_prefill_kernel", "merge_prefill_kernel"}
    kernels |= {
        "order_experts_kernel",
        "route_experts_kernel",
        "combine_experts_kernel",
        "add_int4_parts_kernel",
    }
    assert not names(
        [row for row in rows if row["kernel"] in kernels and row["num_registers"] > 64]
    )


def test_sampling_takes_half_of_the_instructions_of_exact_noise_and_few_registers(
    rows_of_all: list[Row],
) -> None:
    """Exact noise for every token took 2,151 instructions for 16 tokens, and 119 registers."""
    tiles = of_kernel(rows_of_all, "sample_tile_kernel")
    assert not names([row for row in tiles if row["num_registers"] > 64])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("count_instructions.py"))]
    done = subprocess.run(
        [*command, "sample_tile_kernel"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["sample_tile_kernel"] <= 2151 // 2


def test_smaller_gpus_get_tiles_for_their_shared_memory() -> None:
    for small_arch in (86, 89, 120):
        assert shared_memory_kib(small_arch) == 99
        small = attention_tuning(small_arch, 128, 2, block_size=64)
        large = attention_tuning(90, 128, 2, block_size=64)
        assert small.decode.tile_tokens < large.decode.tile_tokens
        assert small.prefill.tile_tokens < large.prefill.tile_tokens


def test_the_errors_of_every_backend_of_every_op_are_within_rounding() -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    command = [sys.executable, str(TABLE.with_name("kernel_errors.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout)
    sampled = errors.pop("sample")
    assert all(backend == {"fp32": 0.0} for backend in sampled.values())
    on_host = {"numpy", "cpp"} if cpp_is_usable() else {"numpy"}
    assert sampled.keys() == ({"triton"} if torch.cuda.is_available() else {"triton", *on_host})
    assert {op for op, backends in errors.items() if {"reference", "triton"} <= set(backends)} == {
        "paged_attention",
        "rope_and_cache",
        "rms_norm",
        "silu_and_mul",
        "gelu_and_mul",
    }
    # Relative to the largest number: a few roundings to 24, 11 and 8 bits.
    limits = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 2e-2}
    for op, backends in errors.items():
        for backend, by_dtype in backends.items():
            for dtype, error in by_dtype.items():
                assert error < limits[dtype], (op, backend, dtype)
