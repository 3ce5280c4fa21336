"""Print, as JSON, the number of machine instructions of the sampling kernels by name, for sm_90.

It runs in a separate process, because Triton must not interpret its kernels here.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))

from tests.kernels.gpu import launches
from tests.kernels.gpu.shipped_launches import KERNELS, record_sampling


def main() -> None:
    """Compile, disassemble and count up to the end; rare cases of a division are after it."""
    counts = {}
    run = launches._run
    printed: list[str] = []

    def keep(*command: str | Path) -> str:
        printed.append(run(*command))
        return printed[-1]

    launches._run = keep
    for launch in launches.record_launches(KERNELS, record_sampling):
        if launch.name in sys.argv[1:]:
            launches.compile_launch(launch, 90)
            found = re.findall(launches._OPCODE, printed[-1], re.MULTILINE)
            counts[launch.name] = len(found) - found[::-1].index("EXIT")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
