"""Limits and ranges of a request's fields; the queue's are in `producer/job/limits.py`.

Both sides check the ranges of values. Only a producer checks sizes and counts: the engine takes any
prompt that fits its model.
"""

from __future__ import annotations

from typing import Final

MAX_PROMPT_BYTES: Final = 1 << 20
#: The token ids that fit the byte limit at four bytes each.
MAX_PROMPT_TOKENS: Final = MAX_PROMPT_BYTES // 4
MAX_CACHE_SALT_CHARS: Final = 128

MAX_MESSAGES: Final = 4096
MAX_MESSAGE_NAME_CHARS: Final = 64
MAX_CALLS_OF_MESSAGE: Final = 128
MAX_CALL_ID_CHARS: Final = 128
#: Of a picture or a sound as it is sent; the operator's limit is lower (`max_media_bytes`).
MAX_MEDIA_BYTES: Final = 128 << 20
#: Pictures and sounds of a job; the operator's limit is lower (`max_media_per_job`).
MAX_MEDIA: Final = 256
MAX_TOOLS: Final = 128
MAX_FUNCTION_NAME_CHARS: Final = 64
MAX_DOCUMENTS: Final = 1024
#: As JSON.
MAX_TEMPLATE_KWARGS_BYTES: Final = 4096

#: Samples of one request.
MAX_N: Final = 128
#: A positive temperature below this would divide logits into infinities; the caller means 0.
MIN_TEMPERATURE: Final = 1e-3
#: Far beyond this, every distribution is uniform in float32.
MAX_TEMPERATURE: Final = 100
#: Of presence and frequency penalties, in either direction; as in OpenAI and vLLM.
MAX_PENALTY: Final = 2
MIN_REPETITION_PENALTY: Final = 0.01
MAX_REPETITION_PENALTY: Final = 100
#: Of guidance. Below 1, outputs would approach the negative prompt.
MIN_GUIDANCE_SCALE: Final = 1
MAX_GUIDANCE_SCALE: Final = 100
#: In either direction; as in OpenAI and vLLM.
MAX_LOGIT_BIAS: Final = 100
#: Likeliest tokens reported per position; as in OpenAI and vLLM.
MAX_LOGPROBS: Final = 20
#: Token ids whose log probabilities are reported per position; as in vLLM.
MAX_LOGPROB_TOKEN_IDS: Final = 128
MIN_SEED: Final = -(2**63)
MAX_SEED: Final = 2**63 - 1

MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 64
MAX_STOP_TOKEN_IDS: Final = 256
MAX_LOGIT_BIASES: Final = 1024
MAX_BAD_WORDS: Final = 1024
MAX_ALLOWED_TOKEN_IDS: Final = 65536
#: Of a response format or a structure, and of all tools together, as JSON.
MAX_STRUCTURE_BYTES: Final = 1 << 18
#: Of the same, and of a function's parameters. JSON readers stop at some depth; ours at 200.
MAX_STRUCTURE_DEPTH: Final = 64
#: Alternatives of `structured_outputs.choice`.
MAX_CHOICES: Final = 4096
#: Rules and terminals of a Lark grammar.
MAX_GRAMMAR_RULES: Final = 1024
