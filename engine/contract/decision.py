"""Decisions: questions about one state, their other spellings, and what makes them invalid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from .chat import ROLES
from .errors import ContractError
from .hidden_media import check_no_media
from .media import MEDIA_TYPES

QuestionType = Literal["choice", "score", "yes_no"]
QUESTION_TYPES: Final[tuple[str, ...]] = get_args(QuestionType)
#: What happens to a question whose confidence is below `min_confidence`.
LowConfidence = Literal["flag", "fail", "generate"]

#: As in vLLM.
MAX_QUESTIONS: Final = 64
MAX_QUESTION_ID_CHARS: Final = 64
#: Options have the labels A to Z.
MAX_OPTIONS: Final = 26
MAX_OPTION_CHARS: Final = 256
DEFAULT_GENERATED_TOKENS: Final = 128
#: Tokens of the text that `on_low_confidence: generate` asks for.
MAX_GENERATED_TOKENS: Final = 4096
#: Of a state, instructions and descriptions that are JSON.
MAX_CONTENT_DEPTH: Final = 32
#: The options of a question of type `yes_no`, in the order of its labels.
YES_NO: Final = ("yes", "no")

#: Name of a question's type in transformers and vLLM.
_NOUL: Final = "noul"
_NOUL_OPTIONS: Final = {"true": "yes", "false": "no"}
_OTHER_NAMES: Final = {"question": "instructions", "options": "criteria", "levels": "criteria"}


def read_spellings(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decision in our own form, from that of transformers, vLLM or SGLang.

    Only names and shapes are read; what does not fit stays as it is, and `check_question` or the
    reader of the document refuses it.

    Args:
        decision: `state` (SGLang: `input`) and `questions`, a mapping or SGLang's list with ids. A
            state that is a list of parts, at least one of them a picture or a sound, is a message
            of the user.

    Raises:
        ContractError: something is given under two names, or an id twice.
    """
    read = dict(decision)
    if "input" in read:
        if "state" in read:
            raise ContractError("input is another name for state: give one of them")
        read["state"] = read.pop("input")
    state = read.get("state")
    if _is_parts(state) and _media_types(state):
        read["state"] = [{"role": "user", "content": state}]
    questions = read.get("questions")
    if isinstance(questions, list | tuple):
        questions = _by_id(questions)
    if isinstance(questions, Mapping):
        read["questions"] = {
            key: read_question(each) if isinstance(each, Mapping) else each
            for key, each in questions.items()
        }
    return read


def check_state(state: Any) -> None:
    """Check that a state that looks like a chat can be read as one.

    Args:
        state: Of a decision, JSON values.

    Raises:
        ContractError: `unsupported_parameter` for a picture or a sound where it cannot be seen, or
            a message has a role that chats do not have.
    """
    messages = messages_of(state)
    if messages is None:
        check_no_media(state)
    for index, message in enumerate(messages or ()):
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ContractError(
                f"state[{index}].role is {role[:40]!r}: use one of {', '.join(ROLES)}, or give the "
                "state as text"
            )
        if role == "assistant" and _media_types(content):
            raise ContractError(
                f"state[{index}] is a message of the assistant, which must not have pictures or "
                "sounds: put them into one of the user"
            )


def check_question(question_id: str, kind: str, criteria: Any) -> None:
    """Check the options of one question, in our own form.

    Args:
        question_id: Its name, for errors.
        kind: `choice`, `score` or `yes_no`.
        criteria: Of a choice, option names to descriptions; of a score, the levels, lowest first;
            of a yes_no, descriptions of `yes` and `no`, or None.

    Raises:
        ContractError: they cannot be asked for.
    """
    where = f"questions.{question_id[:MAX_QUESTION_ID_CHARS]}.criteria"
    if kind == "yes_no":
        if criteria is not None and not (
            isinstance(criteria, Mapping) and set(criteria) <= set(YES_NO)
        ):
            raise ContractError(f"{where} of a yes_no question must describe yes and no only")
        return
    fits = isinstance(criteria, dict) if kind == "choice" else isinstance(criteria, list)
    if not fits or not criteria:
        shape = "option names to descriptions" if kind == "choice" else "a list of levels"
        raise ContractError(f"{where} of a {kind} question must have {shape}, at least one")
    if len(criteria) > MAX_OPTIONS:
        raise ContractError(
            f"{where} has {len(criteria)} options, the limit is {MAX_OPTIONS}: ask in two steps"
        )
    if kind == "choice":
        for name in criteria:
            if not isinstance(name, str) or not 1 <= len(name) <= MAX_OPTION_CHARS:
                raise ContractError(
                    f"{where} has a name that is not 1 to {MAX_OPTION_CHARS} characters"
                )


def text_of(content: Any) -> str:
    """Return the text of content that may be JSON; of None, an empty one."""
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def messages_of(state: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return the messages of a state that is a chat; None if it is text or other JSON.

    A content is a text, or a list of parts: text, pictures and sounds.
    """
    if not isinstance(state, list) or not state:
        return None
    is_chat = all(
        isinstance(each, Mapping)
        and each.keys() == {"role", "content"}
        and isinstance(each["role"], str)
        and (isinstance(each["content"], str) or _is_parts(each["content"]))
        for each in state
    )
    return state if is_chat else None


def _is_parts(content: Any) -> bool:
    """Whether a content is a list of parts of a chat's message."""
    if not isinstance(content, list) or not content or _types(content) - {"text", *MEDIA_TYPES}:
        return False
    texts = (part for part in content if _type_of(part) == "text")
    return all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in texts)


def _media_types(content: Any) -> set[str]:
    """Return the types of the parts of a content that are pictures or sounds."""
    return _types(content) & MEDIA_TYPES.keys() if isinstance(content, list) else set()


def _types(parts: Sequence[Any]) -> set[str]:
    """Return the types of the parts of a content; that of anything else is empty."""
    return set(map(_type_of, parts))


def _type_of(part: Any) -> str:
    """Return the type of a part, which a producer may have read already; else an empty text."""
    kind = part.get("type") if isinstance(part, Mapping) else getattr(part, "type", None)
    return kind if isinstance(kind, str) else ""


def _by_id(questions: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, question in enumerate(questions):
        if not isinstance(question, Mapping) or not isinstance(question.get("id"), str):
            raise ContractError(f"questions[{index}] has no id: give each question of a list one")
        if question["id"] in found:
            raise ContractError(f"questions[{index}].id is given twice: rename one")
        found[question["id"]] = {key: each for key, each in question.items() if key != "id"}
    return found


def read_question(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return one question in our own form; see `read_spellings`.

    Raises:
        ContractError: something is given under two names, or an option twice.
    """
    read = dict(question)
    for other, name in _OTHER_NAMES.items():
        if other in read:
            if name in read:
                raise ContractError(f"{other} is another name for {name}: give one of them")
            read[name] = read.pop(other)
    if read.get("type") == _NOUL:
        read["type"] = "yes_no"
        if isinstance(read.get("criteria"), Mapping):
            read["criteria"] = {
                _NOUL_OPTIONS.get(key, key): each for key, each in read["criteria"].items()
            }
    if read.get("type") == "yes_no" and ("yes" in read or "no" in read):
        if read.get("criteria") is not None:
            raise ContractError("yes and no are given beside criteria: give one of them")
        read["criteria"] = {key: read.pop(key) for key in YES_NO if key in read}
    if read.get("type") == "choice" and isinstance(read.get("criteria"), list | tuple):
        names = list(read["criteria"])
        if all(isinstance(name, str) for name in names):
            if len(set(names)) < len(names):
                raise ContractError("an option of a choice is given twice: rename one")
            read["criteria"] = dict.fromkeys(names)
    return read
