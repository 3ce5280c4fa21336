"""The program of a check process: compiles one structure after another, each within limits.

`structure_check.py` starts it as `python -I -S structure_check_process.py FOLDER`, with a socket as
its standard input. It imports only the standard library, and llguidance from FOLDER. A structure
that passes a limit ends this process by a signal, which says which limit it was.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any

#: Per structure, from its arrival to the verdict.
CPU_S = 2.0
WALL_S = 8.0
#: Address space of the process, of which about 30 MB are there before the first structure.
MEMORY_BYTES = 512 << 20
#: Less than a thread of an engine has, so that what passes here passes there.
STACK_BYTES = 2 << 20
#: After a structure that took more memory, a new process takes the next, with all of its memory.
_KEPT_MEMORY_KB = 64 << 10
#: How often an idle process looks whether its parent lives.
_PARENT_CHECK_S = 2.0
#: Token ids that a grammar may name: more than any model has, and 0.4 s of CPU time.
_MAX_TOKEN_ID = 300_000
_SPECIAL_TOKEN = re.compile(r"<[^<>\s\[\]]+>")
_TOKEN_IDS = re.compile(r"<\[([^\]]*)\]>")
_HEADER = struct.Struct("!I")


def send_message(connection: socket.socket, message: object) -> None:
    """Send a JSON value."""
    data = json.dumps(message).encode()
    connection.sendall(_HEADER.pack(len(data)) + data)


def receive_message(connection: socket.socket) -> Any:
    """Return the next JSON value.

    Raises:
        EOFError: the other end is closed.
    """
    (num_bytes,) = _HEADER.unpack(_receive(connection, _HEADER.size))
    return json.loads(_receive(connection, num_bytes))


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    parts = []
    while num_bytes:
        part = connection.recv(min(num_bytes, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def main(arguments: list[str]) -> None:
    """Check structures until the parent closes the socket or dies.

    Args:
        arguments: the folder that holds llguidance.
    """
    parent_pid = os.getppid()
    connection = socket.socket(fileno=0)
    _prepare_signals()
    sys.path.append(arguments[0])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    tokenizer = _byte_tokenizer()
    send_message(connection, "ready")
    first_kb = _memory_kb()
    while _memory_kb() - first_kb < _KEPT_MEMORY_KB:
        while not select.select([connection], [], [], _PARENT_CHECK_S)[0]:
            if os.getppid() != parent_pid:
                return
        try:
            kind, text, overrides = receive_message(connection)
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        verdict = _check(tokenizer, kind, text, overrides)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send_message(connection, verdict)


def _prepare_signals() -> None:
    # The parent decides when this process ends, not a Ctrl-C in the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending = (signal.SIGPROF, signal.SIGALRM, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM)
    for number in ending:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (soft, hard))


def _memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _byte_tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


class _ByteVocabulary:
    """The bytes, and the special tokens that a grammar names: only the model knows the real ones.

    Its attributes are those that llguidance's `TokenizerWrapper` reads.
    """

    def __init__(self, grammar: str) -> None:
        names = sorted(set(_SPECIAL_TOKEN.findall(grammar)))
        ids = re.findall(r"\d{1,9}", " ".join(_TOKEN_IDS.findall(grammar)))
        num_named = min(max(map(int, ids), default=0), _MAX_TOKEN_ID)
        special = [b"\xff" + name.encode() for name in (*names, "<end>")]
        self.tokens = [*(bytes([byte]) for byte in range(256)), *special, *[b""] * num_named]
        self.special_token_ids = list(range(256, 256 + len(special)))
        self.eos_token_id = self.special_token_ids[-1]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _check(tokenizer: Any, kind: str, text: str, overrides: Any) -> dict[str, str]:
    """Return `grammar`, in llguidance's format, or `error` or `limit`, which say what is wrong."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    try:
        grammar = _grammar(kind, text, overrides)
        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, None)
        if is_error:
            return {"error": messages[0]}
        if any("no tokenizer" in message for message in messages):
            tokenizer = LLTokenizer(TokenizerWrapper(_ByteVocabulary(grammar)))
        # Some structures pass validation at once, and take minutes to compile. The bytes are the
        # finest vocabulary; the automata that compilation makes do not depend on it.
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_logit_bias()
        return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"limit": "stack"}
    except Exception as error:
        return {"error": str(error)}
    except BaseException as error:  # a panic in Rust
        return {"error": type(error).__name__}


def _grammar(kind: str, text: str, overrides: Any) -> str:
    from llguidance import LLMatcher, regex_to_lark

    if kind == "json":
        grammar: str = LLMatcher.grammar_from_json_schema(text, overrides=overrides)
    elif kind == "regex":
        # \d, \w and \s are ASCII, as in JavaScript: few callers mean the digits of all scripts,
        # which differ between versions of Unicode.
        grammar = LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, 'dws')}/")
    elif kind == "lark":
        grammar = LLMatcher.grammar_from_lark(text)
    else:
        grammar = text
    return grammar


if __name__ == "__main__":
    main(sys.argv[1:])
