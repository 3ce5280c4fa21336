"""Writes the synchronous client from the asyncio one, so that each line is kept by hand once.

`python tests/structure/generate_sync.py` writes the files; with `--check` it only compares, as
`make lint` does. It lies among the tests, like the other tools that make committed files, because
everything in `producer/` is shipped.

Each file of `ORIGINALS` makes the file beside it without `async_` in its name. The changes are
`RULES`, in order, and `TEXTS`: sentences that must differ. Code that must differ is not generated:
it is in `producer/store/connection.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORIGINALS = (
    "producer/store/async_store.py",
    "producer/store/async_shard_places.py",
    "producer/store/async_shards.py",
    "producer/watch/async_progress.py",
    "producer/watch/async_explanation.py",
    "producer/watch/async_one_job.py",
    "producer/watch/async_many_jobs.py",
    "producer/watch/async_fleet_watch.py",
    "producer/watch/async_stream.py",
    "producer/client/async_job_verbs.py",
    "producer/client/async_kind_verbs.py",
    "producer/client/async_first_item.py",
    "producer/client/async_batch_verbs.py",
    "producer/client/async_batches.py",
    "producer/client/async_operator_verbs.py",
    "producer/client/async_vector_verbs.py",
    "producer/client/async_media_verbs.py",
    "producer/client/async_client.py",
)
#: Patterns and their replacements, in code, docstrings and comments alike.
RULES = (
    (r"from redis\.asyncio import Redis as AsyncRedis\b", "from redis import Redis"),
    (r"from \.async_iteration import as_async\n", ""),
    (r"from \.async_checks import off_loop\n", ""),
    (r"\bawait off_loop\(([\w.]+), ", r"\1("),
    (r"\bas_async\((\w+)\)", r"\1"),
    (r"\baiter\(", "iter("),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basyncio\.to_thread\(([\w.]+), ", r"\1("),
    (r"\bimport asyncio\b", "import time"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclos(e|ing)\b", r"clos\1"),
    (r"\basync_(\w+)", r"\1"),
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\b(\w+\[\w+\]) \| \1", r"\1"),
)
#: Sentences of the originals, by file, and what the synchronous file says instead.
TEXTS = {
    "producer/store/async_store.py": [
        ("The asyncio store: it runs", "The synchronous store: it runs"),
    ],
    "producer/watch/async_many_jobs.py": [
        ("Not for use by several tasks.", "Not for use by several threads."),
    ],
    "producer/client/async_batches.py": [
        (
            "lines of a bulk file, from an asynchronous iterable or another one.",
            "lines of a bulk file.",
        ),
    ],
    "producer/client/async_client.py": [
        ("The asyncio client:", "The synchronous client:"),
        (
            """
    Belongs to the event loop that it is first used in, and so to one process: make it where the
    loop runs (in a framework's start-up hook), and one per loop. Using it in another loop raises
    `WrongEventLoop` before anything is sent.

    Examples:
        >>> async with AsyncClient("redis://localhost:6379/0") as client:
        ...     job = await client.submit(prompt="Name three fruits.", max_tokens=32)
        ...     print((await job.result(timeout_s=60)).text)
""",
            """
    Thread-safe. A process that is forked from one that has used a client opens connections of its
    own, so a module may hold a client for workers that a server forks later. A stream or a wait
    that runs during the fork continues only in the process that began it.

    Examples:
        >>> client = Client("redis://localhost:6379/0")
        >>> job = client.submit(prompt="Name three fruits.", max_tokens=32)
        >>> print(job.result(timeout_s=60).text)
""",
        ),
        (
            """values or mappings, from an asynchronous iterable or
                another one.""",
            "values or mappings.",
        ),
    ],
}


def target_of(original: str) -> str:
    """Return the path of the file that an original makes."""
    folder, _, name = original.rpartition("/")
    return f"{folder}/{name.removeprefix('async_')}"


def generate(original: str) -> str:
    """Return the synchronous text of an original, formatted."""
    text = (ROOT / original).read_text()
    for old, new in TEXTS.get(original, []):
        assert text.count(old) == 1, f"{original} must contain once: {old}"
        text = text.replace(old, new)
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    name = Path(original).name
    header = f"# Generated from {name} by tests/structure/generate_sync.py: change that file.\n"
    return _ruff(header + text, target_of(original))


def _ruff(text: str, path: str) -> str:
    """Sort the imports and format, as in the file of that path."""
    fixes = ("--select", "I,F401,SIM117,UP028", "--fix", "--unsafe-fixes", "--exit-zero", "--quiet")
    for command in (("check", *fixes), ("format",)):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", path, "-"],
            input=text,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return text


def outdated() -> list[str]:
    """Return the paths of the generated files that do not hold what their originals make."""
    texts = {target_of(original): generate(original) for original in ORIGINALS}
    return [
        path
        for path, text in texts.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text() != text
    ]


def main() -> None:
    """Write the files, or with `--check` exit with an error if one would change."""
    if sys.argv[1:] == ["--check"]:
        if changed := outdated():
            sys.exit(f"run {Path(__file__).relative_to(ROOT)}: {', '.join(changed)} would change")
        return
    for original in ORIGINALS:
        (ROOT / target_of(original)).write_text(generate(original))


if __name__ == "__main__":
    main()
