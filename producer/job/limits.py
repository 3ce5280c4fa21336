"""The limits of what a job may hold."""

from __future__ import annotations

from typing import Final

MAX_PROMPT_BYTES: Final = 1 << 20
#: As many token ids as fit the byte limit at four bytes each.
MAX_PROMPT_TOKENS: Final = MAX_PROMPT_BYTES // 4
MAX_MESSAGES: Final = 4096
MAX_MESSAGE_NAME_CHARS: Final = 64
MAX_CALLS_OF_MESSAGE: Final = 128
MAX_CALL_ID_CHARS: Final = 128
MAX_TOOLS: Final = 128
FUNCTION_NAME_CHARS: Final = 64
#: OpenAI's.
FUNCTION_NAME: Final = r"^[a-zA-Z0-9_-]{1,64}$"
MAX_DOCUMENTS: Final = 1024
MAX_TEMPLATE_KWARGS_BYTES: Final = 4096
#: Names that a template is given by other means, or that would steer the rendering itself.
RESERVED_TEMPLATE_KWARGS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
MAX_CACHE_SALT_CHARS: Final = 128
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 64
MAX_STOP_TOKEN_IDS: Final = 256
MAX_N: Final = 128
MAX_LOGPROBS: Final = 20
MAX_LOGIT_BIASES: Final = 1024
MAX_BAD_WORDS: Final = 1024
MAX_ALLOWED_TOKEN_IDS: Final = 65536
#: Of a response format or a structure, as JSON.
MAX_STRUCTURE_BYTES: Final = 1 << 18
#: Of the same, and of a function's parameters: readers of JSON give up at some depth, ours at 200.
MAX_STRUCTURE_DEPTH: Final = 64
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_BYTES: Final = 2048
MAX_TAGS: Final = 16
MAX_TAG_CHARS: Final = 64
MAX_URL_CHARS: Final = 2048
MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
#: Tokens that a job is taken to cost at most, before it has run.
MAX_COST_TOKENS: Final = 10_000_000
#: 30 days.
MAX_TTL_S: Final = 30 * 24 * 3600.0
