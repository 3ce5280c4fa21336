"""A clock that a test puts forward and back for one process, by a preloaded library."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

# The C library's functions for the time of day, shifted by the microseconds in a shared file.
_SOURCE = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset_us;

__attribute__((constructor)) static void start(void) {
    int file = open(getenv("FAKE_CLOCK_FILE"), O_RDONLY);
    offset_us = mmap(0, sizeof *offset_us, PROT_READ, MAP_SHARED, file, 0);
}

/* By a system call: an allocator may ask for the time before any library is ready. */
int clock_gettime(clockid_t clock, struct timespec *value) {
    int status = syscall(SYS_clock_gettime, clock, value);
    if (offset_us && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long us = value->tv_sec * 1000000LL + value->tv_nsec / 1000 + *offset_us;
        value->tv_sec = us / 1000000;
        value->tv_nsec = us % 1000000 * 1000;
    }
    return status;
}

int gettimeofday(struct timeval *restrict value, void *restrict zone) {
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    value->tv_sec = now.tv_sec;
    value->tv_usec = now.tv_nsec / 1000;
    return status;
}

time_t time(time_t *value) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (value) *value = now.tv_sec;
    return now.tv_sec;
}
"""


class FakeClock:
    """The clock of a Redis server, which gets `environment` at its start."""

    def __init__(self, folder: Path) -> None:
        """Build the library; the test is skipped if there is no C compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("no C compiler (cc, gcc or clang): the clock of Redis cannot be moved")
        source, library, file = (folder / name for name in ("clock.c", "clock.so", "offset"))
        source.write_text(_SOURCE)
        file.write_bytes(bytes(8))
        command = [
            compiler,
            "-D_GNU_SOURCE",
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            str(library),
            str(source),
        ]
        subprocess.run(command, check=True, timeout=60)
        self.environment = {"LD_PRELOAD": str(library), "FAKE_CLOCK_FILE": str(file)}
        with file.open("r+b") as opened:
            self._offset = mmap.mmap(opened.fileno(), 8)

    def set(self, redis: Any, offset_s: float) -> None:
        """Shift the clock of a running server by a number of seconds from the real time."""
        self._offset[:] = struct.pack("q", round(offset_s * 1e6))
        deadline = time.monotonic() + 60
        while abs(redis.time()[0] - time.time() - offset_s) > 2:  # it keeps the time for a while
            assert time.monotonic() < deadline, "the server does not see the other time"
            time.sleep(0.005)

    def step(self, redis: Any, by_s: float) -> None:
        """Put the clock of a running server forward, or back if the number is negative."""
        (offset_us,) = struct.unpack("q", self._offset[:])
        self.set(redis, offset_us / 1e6 + by_s)
