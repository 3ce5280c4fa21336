"""Run luacheck over the Lua files: python tests/structure/lint_lua.py.

Each file sees the names of Redis and of the libraries that it includes, and no others. Without
luacheck (Debian's package `lua-check`, or `luarocks install luacheck`) nothing is checked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from batchmill.producer.protocol.scripts import LUA_FOLDER, declared_includes, definitions

OPTIONS = ["--no-config", "--no-color", "-q", "--codes", "--std", "lua51"]
OPTIONS += ["--max-line-length", "120"]
REDIS_NAMES = ["redis", "cjson", "ARGV"]


def main() -> int:
    """Check every file; return the number of files with findings, for the exit status."""
    luacheck = shutil.which("luacheck")
    if luacheck is None:
        print("Lua: not checked, because luacheck is not installed (apt-get install lua-check)")
        return 0
    num_failed = 0
    files = sorted(LUA_FOLDER.rglob("*.lua"))
    for path in files:
        included = declared_includes(path.read_text(encoding="utf-8"))
        names = [found.name for library in included for found in definitions(library)]
        command = [luacheck, str(path), *OPTIONS, "--read-globals", *REDIS_NAMES, *names]
        if path.parent.name == "lib":
            # The definitions of a library are used in other files; a test checks that each one is.
            command += ["--ignore", *(f"211/^{found.name}$" for found in definitions(path.stem))]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            print(done.stdout + done.stderr)
            num_failed += 1
    print(f"Lua: luacheck found problems in {num_failed} of {len(files)} files")
    return num_failed


if __name__ == "__main__":
    sys.exit(main())
