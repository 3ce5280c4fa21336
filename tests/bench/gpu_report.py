"""The arguments of a section of the GPU benchmark, and the output of its figures.

Every figure is one JSON line, printed at once: a run that is cut short keeps what it has measured.
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Ceilings:
    """The best rates of this device, from which floors are computed.

    Unless a field says otherwise, others measured the defaults on an H200; a run replaces them by
    its own figures.
    """

    copy_bytes_per_s: float = 4.3e12
    bf16_flop_per_s: float = 790e12
    #: Not measured: bf16's times 1.7.
    fp8_flop_per_s: float = 1343e12
    measured_here: bool = False


class OutOfTime(Exception):
    """The time of the section or of the whole run is used up."""


@dataclass
class Bench:
    """State that all sections share.

    Attributes:
        device: The device to measure.
        toy: Sizes for a test on a CPU; the figures are meaningless.
        out: Folder for the lines, in addition to standard output, or None.
        deadline_s: End of the whole run, `time.monotonic`.
        section: Name of the running section.
        section_deadline_s: Its end.
        ceilings: From the first section.
        failed: Sections that raised.
    """

    device: torch.device
    toy: bool
    out: Path | None
    deadline_s: float
    section: str = ""
    section_deadline_s: float = 0.0
    ceilings: Ceilings = field(default_factory=Ceilings)
    failed: list[str] = field(default_factory=list)

    def line(self, measure: str, **values: Any) -> None:
        """Print one figure, or several that belong together."""
        values = {name: _rounded(value) for name, value in values.items()}
        text = json.dumps({"section": self.section, "measure": measure, **values}, default=str)
        print(text, flush=True)
        if self.out is not None:
            with (self.out / "gpu_run.jsonl").open("a") as file:
                file.write(text + "\n")

    def run(self, name: str, budget_s: float, section: Callable[[Bench], None]) -> None:
        """Run a section; report its error and continue the run."""
        now_s = time.monotonic()
        self.section = name
        if now_s >= self.deadline_s:
            self.line("skipped", why="the run's time is used up")
            return
        self.section_deadline_s = min(now_s + budget_s, self.deadline_s)
        status: dict[str, Any] = {"status": "done"}
        try:
            section(self)
        except OutOfTime:
            status = {"status": "cut", "why": f"its {budget_s:g} s are used up"}
        except Exception as error:
            self.failed.append(name)
            where = traceback.format_exception(error)[-6:]
            status = {"status": "failed", "error": repr(error)[:2000], "where": "".join(where)}
        gc.collect()
        if self.device.type == "cuda" and not self.device_is_lost():
            torch.cuda.empty_cache()
        self.line("section", seconds=time.monotonic() - now_s, **status)

    def check_time(self, needed_s: float = 0.0) -> None:
        """Stop the section if less than `needed_s` of its time is left.

        Raises:
            OutOfTime: less is left.
        """
        if time.monotonic() + needed_s > self.section_deadline_s:
            raise OutOfTime

    def device_is_lost(self) -> bool:
        """Return whether an earlier kernel broke the device for this process."""
        try:
            self.synchronize()
        except RuntimeError:
            return True
        return False

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time_us(self, call: Callable[[], object], *, repetitions: int = 20) -> float:
        """Return the median time of a call in microseconds, after two warm-up calls."""
        self.check_time()
        if self.device.type != "cuda":
            repetitions = 1
        else:
            call(), call()
        times: list[float] = []
        for _ in range(repetitions):
            if self.device.type == "cuda":
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                stop.record()
                stop.synchronize()
                times.append(start.elapsed_time(stop) * 1000)
            else:
                started_at_s = time.perf_counter()
                call()
                times.append((time.perf_counter() - started_at_s) * 1e6)
        return sorted(times)[len(times) // 2]

    def time_replayed_us(self, calls: Sequence[Callable[[], object]], *, rounds: int = 10) -> float:
        """Return the mean device time per call in microseconds, without the host.

        All calls are captured one after another in one CUDA graph. So each finds the others' data
        in the cache instead of its own, and none waits for a launch.
        """
        self.check_time()
        if self.device.type != "cuda":
            return self.time_us(calls[0])
        graph = capture(lambda: [call() for call in calls])
        return self.time_us(graph.replay, repetitions=rounds) / len(calls)


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Run a call twice, then capture it in a CUDA graph, both on a new stream.

    Graphs do not share a stream: some versions of torch free a stream's cuBLAS workspace with any
    graph that was captured there (torch issue 193402).
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph


def _rounded(value: Any) -> Any:
    """Round to four digits; a measurement has fewer."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value
