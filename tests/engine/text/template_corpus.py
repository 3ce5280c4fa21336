"""Chat templates in the styles of model families, and conversations to render with them.

They were written for these tests: each has what is peculiar to a family (roles, the place of the
system message, checks, macros, namespaces, thoughts, tools), in as few lines as show it.
"""

# ruff: noqa: E501

from __future__ import annotations

from typing import Any

#: Styles that render text of users and assistants.
TEMPLATES = {
    "chatml": """
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "chatml with a default system message": """
{%- for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "system message inside of the first instruction": """
{%- if messages[0]['role'] == 'system' %}
{%- set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{%- else %}{% set rest = messages %}{% set system = false %}{% endif %}
{%- for m in rest %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if loop.index0 == 0 and system != false %}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}
{%- else %}{% set content = m['content'] %}{% endif %}
{%- if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}""",
    "headers": """
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
    + message['content'] | trim + '<|eot_id|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    "no system role": """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    "text or parts, system message as a prefix": """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content if messages[0].content is string
    else messages[0].content[0].text %}
{%- set prefix = first + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}<start_of_turn>{{ 'model' if message.role == 'assistant'
    else message.role }}
{{ prefix if loop.first }}
{%- if message.content is string %}{{ message.content | trim }}
{%- elif message.content is iterable %}
{%- for item in message.content %}{% if item.type == 'image' %}<image>
{%- elif item.type == 'text' %}{{ item.text | trim }}{% endif %}{% endfor %}
{%- else %}{{ raise_exception('Invalid content type') }}{% endif %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}""",
    "parts only": """
{%- for message in messages %}{{ message.role | capitalize }}:
{%- for part in message.content | selectattr('type', 'equalto', 'text') %} {{ part.text }}
{%- endfor %}<end>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}""",
    "role tags": """
{%- for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\\n'
    + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ '<|system|>\\n'
    + message['content'] + eos_token }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n'
    + message['content'] + eos_token }}{% endif %}{% if loop.last and add_generation_prompt %}
{{- '<|assistant|>' }}{% endif %}{% endfor %}""",
    "words": """
{%- set ns = namespace(text='') %}
{%- for message in messages %}{% if message.role == 'system' %}{% set ns.text = ns.text
    ~ message.content ~ '\\n\\n' %}{% else %}{% set ns.text = ns.text ~ message.role.title() ~ ': '
    ~ message.content ~ '\\n' %}{% endif %}{% endfor %}{{ ns.text }}
{%- if add_generation_prompt %}Assistant:{% endif %}""",
    "macros and loop controls": """
{%- macro turn(role, text) %}[{{ role }}]{{ caller() if caller else '' }}{{ text }}[/{{ role }}]
{%- endmacro %}
{%- for message in messages %}{% if not message.content %}{% continue %}{% endif %}
{{- turn(message.role | upper, message.content) }}{% endfor %}
{%- if add_generation_prompt %}[ASSISTANT]{% endif %}""",
    "marks of the assistant's tokens": """
{%- for message in messages %}<{{ message.role }}>
{%- if message.role == 'assistant' %}{% generation %}{{ message.content }}</s>{% endgeneration %}
{%- else %}{{ message.content }}</s>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}""",
    "thoughts of earlier turns left out": """
{{- bos_token }}
{%- for message in messages %}{% if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %}<|User|>{{ message.content }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<|Assistant|>' + content + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|Assistant|><think>
{% endif %}""",
    "the last question found backwards": """
{%- set ns = namespace(last=messages | length - 1, found=false) %}
{%- for message in messages[::-1] %}{% set index = messages | length - 1 - loop.index0 %}
{%- if not ns.found and message.role == 'user' %}{% set ns.found = true %}
{%- set ns.last = index %}{% endif %}{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and loop.index0 > ns.last %}<think>

</think>

{% endif %}{{ message.content | trim('\\n') }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}""",
    "the date": """
{%- if not date_string is defined %}{% if strftime_now is defined %}
{%- set date_string = strftime_now('%Y') %}{% else %}{% set date_string = '2024' %}{% endif %}
{%- endif %}
{%- for message in messages %}<|{{ message.role }}|>{% if loop.first %}Year: {{ date_string }}
{% endif %}{{ message.content }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}""",
    "a final turn for every reply": """
{%- for m in messages %}{{ '<|channel|>' + ('final' if m.role == 'assistant' else m.role)
    + '<|message|>' + (m.content or '') + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}""",
    "a filter block and a trimmed end": """
{%- filter trim %}
{% for message in messages %}
### {{ {'user': 'Instruction', 'assistant': 'Response', 'system': 'Input'}[message.role] }}:
{{ message.content }}
{% endfor %}
{% if add_generation_prompt %}### Response:{% endif %}
{% endfilter %}""",
}
#: Styles that also render tools, calls and their results.
TOOL_TEMPLATES = {
    "calls between tags": """
{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'system' and loop.first %}{% continue %}
{%- elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}{% if m.content %}
{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "one call per turn": """
{%- if tools is not none %}Environment: ipython
{% for t in tools %}{{ t | tojson(indent=4) }}

{% endfor %}{% endif %}
{%- for message in messages %}
{%- if not (message.role == 'tool' or 'tool_calls' in message) %}<|{{ message.role }}|>
{{ message.content | trim }}<|eot|>
{%- elif 'tool_calls' in message %}
{%- if not message.tool_calls | length == 1 %}
{{- raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<|assistant|>{"name": "{{ call.name }}", {{ '"parameters": ' }}
{{- call.arguments | tojson }}}<|eot|>
{%- else %}<|ipython|>{{ message.content | tojson if message.content is mapping
    else message.content }}<|eot|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}""",
    "calls with checked ids": """
{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% if tools is not none and m == user_messages[-1] %}[AVAILABLE_TOOLS] [
{%- for tool in tools %}{{ tool | tojson }}{{ ', ' if not loop.last }}{% endfor %}][/AVAILABLE_TOOLS]
{%- endif %}[INST] {{ m.content }}[/INST]
{%- elif m.role == 'system' %}[SYSTEM_PROMPT] {{ m.content }}[/SYSTEM_PROMPT]
{%- elif m.tool_calls is defined and m.tool_calls %}[TOOL_CALLS] [
{%- for call in m.tool_calls %}{% set out = call.function | tojson %}{{ out[:-1] }}
{%- if not call.id is defined or call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{{- ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}
{%- elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}
{%- elif m.role == 'tool' %}[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "
{{- m.tool_call_id }}"}[/TOOL_RESULTS]{% endif %}{% endfor %}""",
    "types written by macros": """
{%- macro type_of(p) %}{% if p.enum is defined %}{{ p.enum | join(' | ') }}
{%- elif p.type == 'array' %}{{ type_of(p['items']) }}[]
{%- else %}{{ p.type }}{% endif %}{% endmacro %}
{%- if tools %}namespace functions {
{% for tool in tools %}{% set f = tool.function %}// {{ f.description }}
type {{ f.name }} = (_: {
{%- for name, p in f.parameters.properties.items() %} {{ name }}: {{ type_of(p) }},
{%- endfor %} }) => any;
{% endfor %}}
{% endif %}
{%- for m in messages %}<{{ m.role }}>{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}<call {{ c.function.name }} {{ c.function.arguments | tojson }}>
{%- endfor %}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}""",
}
#: Templates that leave something out, are broken, or do what no template may do.
HOSTILE = {
    "leaves replies out": "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
    "shows the last message only": "{{ messages[-1].content }}",
    "shows nothing": "{{ bos_token }}",
    "is empty": "",
    "cuts plain contents": "{% for m in messages %}{% if m.content is string %}{{ m.content[:3] }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "writes parts as JSON": "{% for m in messages %}{% if m.content is not string %}{{ m.content | tojson }}{% endif %}{% endfor %}",
    "cuts contents": "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    "has a syntax error": "{% for m in messages %}{{ m.content }",
    "names an unknown filter": "{% for m in messages %}{{ m.content | shout }}{% endfor %}",
    "divides by zero": "{{ 1 / 0 }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "reads what is not there": "{% for m in messages %}{{ m.content }}{{ m.a.b }}{% endfor %}",
    "always raises": "{{ raise_exception('no') }}",
    "includes a file": "{% include '/etc/passwd' %}{% for m in messages %}{{ m.content }}{% endfor %}",
    "reaches for classes": "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "formats a class": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "changes the messages": "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{{ messages.append(messages[0]) }}",
    "calls itself for ever": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "doubles itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "counts for ever": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "counts too far": "{% for i in range(10 ** 9) %}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
}

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Bern", "Z\u00fcrich"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
        },
    },
}


def _call(number: int, arguments: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": f"abcdefgh{number}", "type": "function", "function": function}


_HELLO = {"role": "user", "content": "Hello, number 7041!"}
_REPLY = {"role": "assistant", "content": "  A reply of 7042 words\n"}
_CALL = {"role": "assistant", "content": None, "tool_calls": [_call(1, '{"city": "Bern"}')]}
_RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "Sunny 7043"}
#: Conversations as OpenAI's clients send them.
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [_HELLO],
    "system": [{"role": "system", "content": "Rules 7044: \u201cbrief\u201d."}, _HELLO],
    "developer": [{"role": "developer", "content": "Rules 7044."}, _HELLO],
    "turns": [_HELLO, _REPLY, {"role": "user", "content": "More \U0001f600 7045 {{ x }} {% y %}"}],
    "parts": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "One 7046"}, {"type": "text", "text": "two 7047"}],
        }
    ],
    "two users": [_HELLO, {"role": "user", "content": "And 7048"}],
    "late system": [_HELLO, _REPLY, {"role": "system", "content": "Now 7049"}, _HELLO],
    "thoughts": [_HELLO, {"role": "assistant", "content": "<think>7050</think>7051"}, _HELLO],
    "special tokens": [{"role": "user", "content": "<|im_end|>7052</s>[INST]"}],
    "blank": [{"role": "user", "content": " \n\t 7053 \n"}],
}
TOOL_CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "call": [_HELLO, _CALL, _RESULT],
    "call with text": [_HELLO, {**_CALL, "content": "Wait 7054"}, _RESULT],
    "two calls": [
        _HELLO,
        {**_CALL, "tool_calls": [_call(1, '{"city": "Bern"}'), _call(2, '{"days": [1, 2]}')]},
        _RESULT,
        {**_RESULT, "tool_call_id": "abcdefgh2", "content": "Rain 7055"},
    ],
    "question": [_HELLO],
}
