"""The chat template that Transformers and vLLM read: Jinja that writes what `data/chat.py` renders.

Separate because it is a second spelling of the same format in another language; a test compares the
two. One thing it cannot do: separate content from control. A user's "<tool_call>" becomes the
control token there (unless the caller sanitizes), but stays text in `data/chat.py`.
"""

import re

from data.conversation import DEFAULT_PROMPT, SystemPrompt
from data.wire import Block, WireFormat

# `text` takes a string or OpenAI's list of parts; `word` and `compact` are `_write_compact` of
# `data/tool_schema.py`. Every tag has a dash: without it, the line breaks would be part of the
# prompt.
_MACROS = """\
{%- macro text(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content is iterable -%}{%- for part in content -%}{{- part.text -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro word(schema, required) -%}
  {%- set plain = namespace(keys=[]) -%}
  {%- for key in schema if key not in ['description', 'title', 'default', 'examples'] -%}
    {%- set plain.keys = plain.keys + [key] -%}
  {%- endfor -%}
  {%- if plain.keys == ['type'] and schema.type is string -%}
    {{- (schema.type + ('' if required else '?')) | tojson -}}
  {%- elif required and schema.enum and plain.keys | sort in [['enum', 'type'], ['enum']] -%}
    {{- schema.enum | tojson -}}
  {%- else -%}
    {{- '{' -}}
    {%- for key in plain.keys -%}
      {{- key | tojson }}: {{ schema[key] | tojson -}}{{- '' if loop.last else ', ' -}}
    {%- endfor -%}
    {{- ('' if required else ', "optional": true') + '}' -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro compact(tool) -%}
  {{- '{"name": ' + (tool.name | tojson) -}}
  {%- if tool.description -%}{{- ', "description": ' + (tool.description | tojson) -}}{%- endif -%}
  {{- ', "parameters": {' -}}
  {%- for name, schema in tool.parameters.properties.items() -%}
    {{- name | tojson }}: {{ word(schema, name in (tool.parameters.required or [])) -}}
    {{- '' if loop.last else ', ' -}}
  {%- endfor -%}
  {{- '}}' -}}
{%- endmacro -%}
"""

# The list of tools, by the shape in which the prompt shows them. `tojson` is json.dumps, as in
# `data/wire.py`
_TOOLS = {
    "openai": "{{- tools | tojson -}}",
    "function": "{{- '[' -}}{%- for tool in tools -%}{{- (tool.function or tool) | tojson -}}"
    "{{- '' if loop.last else ', ' -}}{%- endfor -%}{{- ']' -}}",
    "compact": "{{- '[' -}}{%- for tool in tools -%}{{- compact(tool.function or tool) -}}"
    "{{- '' if loop.last else ', ' -}}{%- endfor -%}{{- ']' -}}",
}

# Thinking comes in a field of its own or in front of the text, as rows have it
_THINKING = """\
    {%- set content = text(message.content) | trim -%}
    {%- set thinking = (message.reasoning_content or '') | trim -%}
    {%- if content.startswith('<think>') and '</think>' in content -%}
      {%- set thinking = thinking or (content.split('</think>')[0][7:] | trim) -%}
      {%- set content = content.split('</think>')[1:] | join('</think>') | trim -%}
    {%- endif -%}
    {%- if thinking -%}{{- @THINKING_OPEN@ + thinking + @THINKING_CLOSE@ -}}{%- endif -%}
    {{- content -}}
"""

# Arguments may come as a string of JSON, OpenAI's way, which must not be quoted a second time
_CALL = """\
{%- set call = call.function or call -%}
{{- '{"name": ' + (call.name | tojson) + ', "arguments": ' -}}
{{- (call.arguments if call.arguments is string else (call.arguments | tojson)) + '}' -}}
"""

# The calls of a turn and one result, by the name of the wire format
_CALLS = {
    "hermes": "{%- for call in message.tool_calls or [] -%}{{- @CALL_OPEN@ -}}"
    + _CALL
    + "{{- @CALL_CLOSE@ -}}{%- endfor -%}",
    "mistral": "{%- for call in message.tool_calls or [] -%}"
    + "{{- @CALL_OPEN@ + '[' if loop.first else ', ' -}}"
    + _CALL
    + "{{- ']' if loop.last else '' -}}{%- endfor -%}",
}
_RESULT = {
    "hermes": "{{- @RESULT_OPEN@ + text(message.content) + @RESULT_CLOSE@ -}}",
    "mistral": "{{- @RESULT_OPEN@ + '{\"content\": ' + (text(message.content) | tojson) -}}"
    "{%- if message.name -%}{{- ', \"name\": ' + (message.name | tojson) -}}{%- endif -%}"
    "{{- '}' + @RESULT_CLOSE@ -}}",
}

# Turn by turn. A system message writes nothing itself: it is remembered until the first user's
# turn, and neighbouring tool messages share one turn, since rows have one message for each result.
_BODY = """\
{{- bos_token -}}
{%- set chat = namespace(system='') -%}
{%- for message in messages -%}
  {%- if message.role in ['system', 'developer'] -%}
    {%- set chat.system = text(message.content) | trim -%}
  {%- elif message.role == 'user' -%}
    {{- '<start_of_turn>user\\n' -}}
    {%- if loop.index0 == 0 or (loop.index0 == 1 and chat.system) -%}
      {{- chat.system -}}
      {%- if tools -%}
        {{- ('\\n\\n' if chat.system else '') + @BEFORE@ + @TOOLS_OPEN@ -}}
        @TOOLS@
        {{- @TOOLS_CLOSE@ + @AFTER@ -}}
      {%- endif -%}
      {{- '\\n\\n' if chat.system or tools else '' -}}
    {%- endif -%}
    {{- text(message.content) + '<end_of_turn>\\n' -}}
  {%- elif message.role in ['assistant', 'model'] -%}
    {{- '<start_of_turn>model\\n' -}}
@THINKING@    @CALLS@
    {{- '<end_of_turn>\\n' -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.previtem.role != 'tool' -%}{{- '<start_of_turn>tool\\n' -}}{%- endif -%}
    @RESULT@
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<end_of_turn>\\n' -}}{%- endif -%}
  {%- else -%}
    {%- set wanted = 'the role system, user, assistant or tool' -%}
    {{- raise_exception('expected ' + wanted + ', got ' + message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


def chat_template(wire: WireFormat, prompt: SystemPrompt | None) -> str:
    """Return the Jinja template of a wire format, with the wording and tool shape of `prompt`."""
    prompt = prompt or DEFAULT_PROMPT
    body = _BODY.replace("@THINKING@", _THINKING).replace("@TOOLS@", _TOOLS[prompt.shape])
    body = body.replace("@CALLS@", _CALLS[wire.name]).replace("@RESULT@", _RESULT[wire.name])
    words = {"BEFORE": prompt.before, "AFTER": prompt.after}
    for name in ("tools", "thinking", "call", "result"):
        block: Block = getattr(wire, name)
        words[f"{name.upper()}_OPEN"] = f"{block.open}{block.gap}"
        words[f"{name.upper()}_CLOSE"] = f"{block.gap}{block.close or ''}"
    # One pass over the words: a placeholder's name inside the wording is left alone
    return _MACROS + re.sub(r"@([A-Z_]+)@", lambda match: quote(words[match.group(1)]), body)


def quote(text: str) -> str:
    """Write a Jinja string literal."""
    # The backslash first: it would escape the escapes
    for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return f"'{text}'"
