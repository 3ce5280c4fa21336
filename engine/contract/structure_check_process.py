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
#: Limits of llguidance. A lexer's work of one step is given in expressions, about 14 per
#: microsecond; the trial allows half of it, because the tokens of a model may need more.
STEP_EXPRESSIONS = 2_000_000
TRIAL_STEP_EXPRESSIONS = STEP_EXPRESSIONS // 2
FIRST_EXPRESSIONS = 1_000_000
LEXER_STATES = 250_000
GRAMMAR_SYMBOLS = 500_000
STEP_ITEMS = 50_000
#: More than the choices of `structured_outputs.choice`.
ROW_ITEMS = 10_000
#: Tokens of the trial. A structure that is too complex mostly fails at the first token of its text.
_NUM_TRIAL_STEPS = 6
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
    tokenizer = _trial_tokenizer()
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


def parser_limits(step_expressions: int = STEP_EXPRESSIONS) -> Any:
    """Return the limits of llguidance, with errors that hold neither the grammar nor the output."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=ROW_ITEMS,
        initial_lexer_fuel=FIRST_EXPRESSIONS,
        step_lexer_fuel=step_expressions,
        step_max_items=STEP_ITEMS,
        max_lexer_states=LEXER_STATES,
        max_grammar_size=GRAMMAR_SYMBOLS,
        verbose_errors=False,
    )


def _trial_tokenizer(grammar: str = "") -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_TrialVocabulary(grammar)))


def _long_tokens() -> list[bytes]:
    """Return tokens of several bytes, as models have: a lexer's work depends on their length."""
    syllables = [first + second for first in "bdfglmnprst" for second in "aeiou"]
    words = [first + second for first in syllables[::3] for second in syllables[::5]]
    texts = [*syllables, *words, *(" " + word for word in words), *map(str.title, words)]
    texts += [str(number) for number in range(10, 1000)]
    texts += [mark * length for mark in " \n\t-=*#._" for length in (2, 3, 4, 8, 16)]
    texts += ['": "', '",', '", "', '":', '{"', '"}', '"]', '["', "},", "],"]
    texts += [" and", "https://", ".com", "true", "false", "null", "-0", "0."]
    texts += ["\u00e4\u00f6", "\u65e5\u672c", "\u0438\u044f", "\U0001f600"]
    return [text.encode() for text in dict.fromkeys(texts)]


class _TrialVocabulary:
    """Bytes, longer tokens, and the special tokens that a grammar names.

    Only the model knows the real ones. The attributes are those that llguidance's
    `TokenizerWrapper` reads.
    """

    def __init__(self, grammar: str) -> None:
        names = sorted(set(_SPECIAL_TOKEN.findall(grammar)))
        ids = re.findall(r"\d{1,9}", " ".join(_TOKEN_IDS.findall(grammar)))
        num_named = min(max(map(int, ids), default=0), _MAX_TOKEN_ID)
        special = [b"\xff" + name.encode() for name in (*names, "<end>")]
        self.tokens = [*(bytes([byte]) for byte in range(256)), *special, *_long_tokens()]
        self.tokens += [b""] * max(0, num_named + 1 - len(self.tokens))
        self.special_token_ids = list(range(256, 256 + len(special)))
        self.eos_token_id = self.special_token_ids[-1]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _check(tokenizer: Any, kind: str, text: str, overrides: Any) -> dict[str, str]:
    """Return `grammar`, in llguidance's format, or `error` or `limit`, which say what is wrong."""
    from llguidance import LLMatcher

    try:
        grammar = _grammar(kind, text, overrides)
        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, None)
        if is_error:
            return {"error": messages[0]}
        if any("no tokenizer" in message for message in messages):
            tokenizer = _trial_tokenizer(grammar)
        # Some structures pass validation at once, and take minutes to compile.
        limits = parser_limits(TRIAL_STEP_EXPRESSIONS)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        _generate(matcher)
        return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"limit": "stack"}
    except Exception as error:
        return {"error": str(error)}
    except BaseException as error:  # a panic in Rust
        return {"error": type(error).__name__}


def _generate(matcher: Any) -> None:
    """Follow the grammar for some tokens, long and short ones in turn."""
    for step in range(_NUM_TRIAL_STEPS):
        if matcher.is_stopped():
            return
        allowed = [id for id, bias in enumerate(matcher.compute_logit_bias()) if bias]
        if not allowed:
            return
        matcher.consume_token(allowed[-1 - step % 2 * (len(allowed) // 2)])


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
