"""Small chat templates in the formats of model families, for the models of tests."""

from __future__ import annotations

from typing import Any

#: Tools in the system message, calls between tags; uses documents and `enable_thinking`.
HERMES = (
    "{%- if tools or documents %}<|im_start|>system\n"
    "{%- for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    '{%- if tools %}Call: <tool_call>{"name": …, "arguments": …}</tool_call>{% endif %}'
    "{%- for document in documents or [] %}[{{ document.title }}] {{ document.text }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<no_think>{% endif %}{% endif %}"
)
#: Tools before the user message, one JSON object as the whole reply.
LLAMA3 = (
    "{%- for message in messages %}<|start|>{{ message.role }}<|end|>"
    "{%- if loop.first and tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    'Answer with {"name": …, "parameters": …}.{% endif %}'
    "{%- if message.tool_calls %}<|python_tag|>"
    '{"name": "{{ message.tool_calls[0].function.name }}", '
    '"parameters": {{ message.tool_calls[0].function.arguments | tojson }}}'
    "{%- else %}{{ message.content }}{% endif %}<|eot|>{% endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
)
#: A list of calls after a special token; refuses ids that do not have nine characters.
MISTRAL = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}"
    "{%- if tools and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "{%- endif %}"
    "[INST]{{ message.content }}[/INST]"
    "{%- elif message.tool_calls %}[TOOL_CALLS]["
    "{%- for call in message.tool_calls %}"
    "{%- if call.id | length != 9 %}{{ raise_exception('the id has another length') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "{% endfor %}]<eos>"
    "{%- elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]"
    "{%- else %}{{ message.content }}<eos>{% endif %}{% endfor %}"
)
#: Mistral's newer format.
MISTRAL_ARGS = (
    "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{%- for message in messages %}[INST]{{ message.content }}[/INST]"
    "{%- for call in message.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
    "{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
#: Uses only roles and contents.
PLAIN = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALL = {
    "hermes": HERMES,
    "llama3_json": LLAMA3,
    "mistral": MISTRAL,
    "mistral with [ARGS]": MISTRAL_ARGS,
}
#: Special tokens in the templates above.
SPECIAL_TOKENS = ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|im_start|>", "<|im_end|>")

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Bern", "Zürich"]},
                "days": {"$ref": "#/$defs/days"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]


def named(name: str) -> dict[str, object]:
    """Return the tool choice that requires one function."""
    return {"type": "function", "function": {"name": name}}
