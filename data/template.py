"""What other programs read: `data/chat.py` in Jinja, and `data/reply.py` as patterns.

`chat_template` writes what the renderer writes; a test compares the two on every kind of message
list. Its `{% generation %}` blocks mark what is trained with `--train-on assistant`: Transformers'
assistant mask and TRL's `assistant_only_loss` read them. What it cannot do is known: it cannot
separate content from control (a user's "<tool_call>" becomes the control token there, unless the
caller sanitizes), and it mends nothing that only rows have (compact parameters, foreign type names,
Python literals, Parquet's nulls); arguments in a string get the renderer's spaces but keep their
escapes.

`response_template` says how a reply is read: with it `transformers serve` answers with tool_calls.
"""

import re
from typing import Any

from data import template_functiongemma as functiongemma
from data.conversation import DEFAULT_PROMPT, SystemPrompt
from data.tool_schema import DECORATION, JSON_TYPES
from data.wire import Block, WireFormat

# Every tag has a dash: without it, the line breaks would be part of the prompt. Three engines read
# this: Jinja in Transformers and vLLM, and llama.cpp's own, for which the names of an object's
# methods (keys, items, values, get) cannot name anything else.
#
# `text` takes a string or OpenAI's list of parts; `data` takes a tool's result, which may be any
# value. `spaced` gives a string of JSON the spaces that `tojson` writes.
_TEXTS = """\
{%- macro text(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content is mapping or content is number -%}
    {{- raise_exception('expected text or a list of text parts, got ' + (content | tojson)) -}}
  {%- elif content -%}
    {%- for part in content -%}
      {%- if part is string -%}{{- part -}}
      {%- elif part.type and part.type != 'text' -%}
        {{- raise_exception('expected text parts only, got one of type ' + part.type) -}}
      {%- else -%}{{- part.text or '' -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro data(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content is mapping or content is number or content is boolean -%}{{- content | tojson -}}
  {%- elif content is not none and content is defined -%}
    {%- set found = namespace(texts=0) -%}
    {%- for part in content if part is mapping and part.type == 'text' -%}
      {%- set found.texts = found.texts + 1 -%}
    {%- endfor -%}
    {%- if found.texts and found.texts == content | length -%}{{- text(content) -}}
    {%- else -%}{{- content | tojson -}}
    {%- endif -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro spaced(json) -%}
  {%- set at = namespace(quoted=false, escaped=false) -%}
  {%- for character in json -%}
    {%- if at.quoted -%}
      {{- character -}}
      {%- set at.quoted = at.escaped or character != '"' -%}
      {%- set at.escaped = character == '\\\\' and not at.escaped -%}
    {%- elif character == '"' -%}{{- character -}}{%- set at.quoted = true -%}
    {%- elif character in [',', ':'] -%}{{- character + ' ' -}}
    {%- elif character not in [' ', '\\n', '\\r', '\\t'] -%}{{- character -}}
    {%- endif -%}
  {%- endfor -%}
{%- endmacro -%}
"""

# A tool as `write_tool` of `data/tool_schema.py` writes it: name, description, parameters, then
# whatever else it has. `tojson` is json.dumps, as in `data/wire.py`
_TOOL = """\
{%- macro extras(object, known) -%}
  {%- for key, value in object.items() if key not in known and value is not none -%}
    {{- ', ' + (key | tojson) + ': ' + (value | tojson) -}}
  {%- endfor -%}
{%- endmacro -%}
{%- macro signature(tool) -%}
  {{- '{"name": ' + (tool.name | tojson) -}}
  {%- if tool.description -%}{{- ', "description": ' + (tool.description | tojson) -}}{%- endif -%}
  {%- set schema = tool.parameters or tool.input_schema or tool.inputSchema or {} -%}
  {{- ', "parameters": {' + parameters(schema) + '}' -}}
  {{- extras(tool, ['name', 'description', 'parameters', 'input_schema', 'inputSchema']) + '}' -}}
{%- endmacro -%}
"""
_SCHEMA = """\
{%- macro parameters(schema) -%}
  {{- '"type": ' + ((schema.type or 'object') | tojson) -}}
  {{- ', "properties": ' + ((schema.properties or {}) | tojson) -}}
  {{- extras(schema, ['type', 'properties']) -}}
{%- endmacro -%}
"""
# `_write_compact` of `data/tool_schema.py`: a type, a list of allowed values, or a schema
_COMPACT = """\
{%- macro word(schema, required) -%}
  {%- set plain = namespace(names=[], texts=0) -%}
  {%- for key, value in schema.items() -%}
    {%- if key not in ['description', 'title', 'default', 'examples'] and value is not none -%}
      {%- set plain.names = plain.names + [key] -%}
    {%- endif -%}
  {%- endfor -%}
  {%- for value in schema.enum or [] if value is string -%}
    {%- set plain.texts = plain.texts + 1 -%}
  {%- endfor -%}
  {%- set is_text = plain.texts == (schema.enum or []) | length -%}
  {%- set is_enum = schema.enum and 'enum' in plain.names -%}
  {%- if plain.names == ['type'] and schema.type in @TYPES@ -%}
    {{- (schema.type + ('' if required else '?')) | tojson -}}
  {%- elif required and is_enum and is_text and plain.names | length == 2
      and schema.type == 'string' -%}
    {{- schema.enum | tojson -}}
  {%- elif required and is_enum and not is_text and plain.names | length == 1 -%}
    {{- schema.enum | tojson -}}
  {%- else -%}
    {{- '{' -}}
    {%- for key in plain.names -%}
      {{- (key | tojson) + ': ' + (schema[key] | tojson) + ('' if loop.last else ', ') -}}
    {%- endfor -%}
    {%- if not required and not schema.optional -%}
      {{- (', ' if plain.names else '') + '"optional": true' -}}
    {%- endif -%}
    {{- '}' -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro parameters(given) -%}
  {%- for name, schema in (given.properties or {}).items() -%}
    {{- (name | tojson) + ': ' + word(schema, name in (given.required or [])) -}}
    {{- '' if loop.last else ', ' -}}
  {%- endfor -%}
{%- endmacro -%}
"""

# The list of tools, by the shape in which the prompt shows them
_OPENAI = """\
{%- macro shown(tool) -%}
  {{- '{"type": "function", "function": ' + signature(tool.function or tool) -}}
  {{- (extras(tool, ['type', 'function']) if tool.function else '') + '}' -}}
{%- endmacro -%}
"""
_INNER = """\
{%- macro shown(tool) -%}{{- signature(tool.function or tool) -}}{%- endmacro -%}
"""
_TOOLS = {
    "openai": _SCHEMA + _OPENAI,
    "function": _SCHEMA + _INNER,
    "compact": _COMPACT + _INNER,
}

# Arguments may come as a string of JSON, OpenAI's way, which must not be quoted a second time
_CALL = """\
{%- macro write(call) -%}
  {%- set given = call.arguments -%}
  {{- '{"name": ' + (call.name | tojson) + ', "arguments": ' -}}
  {%- if given is string -%}{{- spaced(given) or '{}' -}}
  {%- else -%}{{- (given or {}) | tojson -}}
  {%- endif -%}
  {{- '}' -}}
{%- endmacro -%}
"""

# What the model writes after its header. Thinking comes in a field of its own or in front of the
# text, as rows have it
_REPLY = """\
{%- macro reply(message, calls, end) -%}
  {%- set content = text(message.content) | trim -%}
  {%- set thinking = message.reasoning_content or message.reasoning or message.thinking or '' -%}
  {%- set thinking = thinking | trim -%}
  {%- if content.startswith('<think>') and '</think>' in content -%}
    {%- set thinking = thinking or (content.split('</think>')[0][7:] | trim) -%}
    {%- set content = content.split('</think>')[1:] | join('</think>') | trim -%}
  {%- endif -%}
  {%- if thinking -%}{{- @THINKING_OPEN@ + thinking + @THINKING_CLOSE@ -}}{%- endif -%}
  {{- content -}}
  {%- for call in calls -%}
    @CALL@
  {%- endfor -%}
  {{- end -}}
{%- endmacro -%}
"""

# One call of a turn and one result, by the name of the wire format
_CALLS = {
    "hermes": "{{- @CALL_OPEN@ + write(call.function or call) + @CALL_CLOSE@ -}}",
    "mistral": "{{- (@CALL_OPEN@ + '[' if loop.first else ', ') + write(call.function or call) -}}"
    "{{- ']' if loop.last else '' -}}",
    "functiongemma": functiongemma.ONE_CALL,
}
# The name of a result's call: its own, that of the call with its id, or that of the call at its
# place
_NAME = """\
{%- set named = namespace(name=result.name or '') -%}
      {%- set place = loop.index0 -%}
      {%- for call in chat.calls if call.id and call.id == (result.tool_call_id or result.id) -%}
        {%- set named.name = named.name or (call.function or call).name -%}
      {%- endfor -%}
      {%- if not named.name and chat.calls | length == turn.results | length -%}
        {%- set named.name = (chat.calls[place].function or chat.calls[place]).name -%}
      {%- endif -%}
      """
_RESULT = {
    "hermes": "{{- @RESULT_OPEN@ + data(result.content) + @RESULT_CLOSE@ -}}",
    "mistral": _NAME
    + "{{- @RESULT_OPEN@ + '{\"content\": ' + (data(result.content) | tojson) -}}"
    + "{%- if named.name -%}{{- ', \"name\": ' + (named.name | tojson) -}}{%- endif -%}"
    + "{{- '}' + @RESULT_CLOSE@ -}}",
    "functiongemma": _NAME + functiongemma.RESULT,
}
# Results in the order of the calls, where each has the id of one
_SORT = """\
{%- for call in chat.calls if call.id -%}
        {%- for result in turn.results if call.id == (result.tool_call_id or result.id) -%}
          {%- set turn.sorted = turn.sorted + [result] -%}
        {%- endfor -%}
      {%- endfor -%}
      {%- if turn.sorted | length == turn.results | length -%}
        {%- set turn.results = turn.sorted -%}
      {%- endif -%}"""
_OTHERS = """\
{%- elif message.role not in ['system', 'developer'] -%}
    {%- set wanted = 'the role system, user, assistant or tool' -%}
    {{- raise_exception('expected ' + wanted + ', got ' + message.role) -}}"""

# A system message writes nothing itself: Gemma has no such turn, so all of them open the first
# user's turn, wherever they come
_SYSTEM = """\
{{- bos_token -}}
{%- set chat = namespace(system='', calls=[], asked=false) -%}
{%- for message in messages if message.role in ['system', 'developer'] -%}
  {%- set said = text(message.content) | trim -%}
  {%- set gap = '\\n\\n' if chat.system and said else '' -%}
  {%- set chat.system = chat.system + gap + said -%}
{%- endfor -%}
"""

# Turn by turn. What a turn of weight 0 says is read, but not learned: no {% generation %} there.
# Neighbouring messages of users share one turn, and those of tools, since rows have one message for
# each result; results are in the order of the calls where each has the id of one.
_BODY = """\
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {%- set chat.calls = [] -%}
    {%- set follows = not loop.first and loop.previtem.role == 'user' -%}
    {%- set said = text(message.content) -%}
    {{- ('\\n\\n' if said else '') if follows else '<start_of_turn>user\\n' -}}
    {%- if not chat.asked -%}
      {%- set chat.asked = true -%}
      {{- chat.system -}}
      {%- if tools -%}
        {{- ('\\n\\n' if chat.system else '') + @BEFORE@ + @TOOLS_OPEN@ + '[' -}}
        {%- for tool in tools -%}
          {{- shown(tool) + ('' if loop.last else ', ') -}}
        {%- endfor -%}
        {{- ']' + @TOOLS_CLOSE@ + @AFTER@ -}}
      {%- endif -%}
      {{- '\\n\\n' if chat.system or tools else '' -}}
    {%- endif -%}
    {{- said -}}
    {%- if loop.last or loop.nextitem.role != 'user' -%}{{- '<end_of_turn>\\n' -}}{%- endif -%}
  {%- elif message.role in ['assistant', 'model'] -%}
    {%- set single = message.function_call or [] -%}
    {%- set single = [single] if single is mapping else single -%}
    {%- set chat.calls = (message.tool_calls or []) + single -%}
    {{- '<start_of_turn>model\\n' -}}
    {%- if message.weight == 0 or message.train is false -%}
      {{- reply(message, chat.calls, '<end_of_turn>') -}}
    {%- else -%}
      {%- generation -%}{{- reply(message, chat.calls, '<end_of_turn>') -}}{%- endgeneration -%}
    {%- endif -%}
    {{- '\\n' -}}
  {%- elif message.role in ['tool', 'function'] -%}
    {%- if loop.first or loop.previtem.role not in ['tool', 'function'] -%}
      {%- set turn = namespace(results=[], sorted=[], over=false) -%}
      {%- for later in messages[loop.index0:] -%}
        {%- set turn.over = turn.over or later.role not in ['tool', 'function'] -%}
        {%- set turn.results = turn.results + ([] if turn.over else [later]) -%}
      {%- endfor -%}
      @SORT@
      {{- '<start_of_turn>tool\\n' -}}
      {%- for result in turn.results -%}
      @RESULT@
      {%- endfor -%}
      {{- '<end_of_turn>\\n' -}}
    {%- endif -%}
  @OTHERS@
  {%- endif -%}
{%- endfor -%}
{%- if (chat.system or tools) and not chat.asked -%}
  {{- raise_exception('expected a user message, which the system text and the tools open') -}}
{%- endif -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


def chat_template(wire: WireFormat, prompt: SystemPrompt | None) -> str:
    """Return the Jinja template of a wire format, with the wording and tool shape of `prompt`."""
    prompt = prompt or DEFAULT_PROMPT
    reply = _REPLY.replace("@CALL@", _CALLS[wire.name])
    tools = _TOOL + _TOOLS[prompt.shape].replace("@TYPES@", str(list(JSON_TYPES))) + _CALL
    body = _BODY
    if wire.name == "functiongemma":
        tools, body = (
            functiongemma.VALUES + functiongemma.TOOL + functiongemma.CALL,
            functiongemma.BODY,
        )
        left_out = str(list(DECORATION) if prompt.shape == "compact" else [])
        tools = tools.replace("@LEFT_OUT@", left_out)
    for name, part in (("SORT", _SORT), ("OTHERS", _OTHERS), ("RESULT", _RESULT[wire.name])):
        body = body.replace(f"@{name}@", part)
    words = {"BEFORE": prompt.before, "AFTER": prompt.after, "WORDING": wire.wording or ""}
    for name in ("tools", "thinking", "call", "result"):
        block: Block = getattr(wire, name)
        words[f"{name.upper()}_OPEN"] = f"{block.open}{block.gap}"
        words[f"{name.upper()}_CLOSE"] = f"{block.gap}{block.close or ''}"
    # One pass over the words: a placeholder's name inside the wording is left alone
    template = _TEXTS + tools + reply + _SYSTEM + body
    return re.sub(r"@([A-Z_]+)@", lambda match: quote(words[match.group(1)]), template)


def quote(text: str) -> str:
    """Write a Jinja string literal."""
    # The backslash first: it would escape the escapes
    for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return f"'{text}'"


# Whole JSON as a pattern that refers to itself, which the `regex` package of Transformers can. Only
# a call that will load opens a block: a broken one stays text, where Transformers' parser would
# raise an error and the client would get no reply at all.
_STRING = r'"(?:(?!</tool_call>)[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_PAIR = rf"\s*{_STRING}\s*:\s*(?&json)\s*"
_JSON = (
    rf"(?P<json>{_STRING}|{_NUMBER}|true|false|null|\{{(?:{_PAIR}(?:,{_PAIR})*+|\s*)\}}"
    r"|\[(?:\s*(?&json)\s*(?:,\s*(?&json)\s*)*+|\s*)\])"
)
_MADE = rf'\{{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{{){_JSON}'
_CLIENT_CALLS: dict[str, dict[str, Any]] = {
    "hermes": {
        "open_pattern": rf"\s*<tool_call>(?=\s*{_MADE}\s*\}}\s*</tool_call>)",
        "close_pattern": r"</tool_call>\s*",
        "content": "json",
        "transform": {"type": "function", "function": "{content}"},
    },
    # One block holds all calls, but a client that streams wants them one by one: each opens with
    # its whole text and closes with its bracket
    "mistral": {
        "open_pattern": rf"\s*(?:\[TOOL_CALLS\]\s*\[|(?<=\}}\s*),)\s*{_MADE}(?=\s*\}})",
        "close_pattern": r"\s*\}(?:\s*\])?\s*",
        "content": "text",
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{json}"}},
    },
    "functiongemma": functiongemma.CLIENT_CALLS,
}


def response_template(wire: WireFormat) -> dict[str, Any]:
    """Return how Transformers is to read a reply: the `response_template` of a tokenizer's config.

    `tokenizer.parse_response` and `transformers serve` then give reasoning_content, content and
    tool_calls. Source: chat_response_parsing.md of Transformers 5.
    """
    ends = "|".join(re.escape(end) for end in ("<end_of_turn>", "<eos>", *wire.turn_ends))
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "<start_of_turn>model\n",
        "fields": {
            "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
            "tool_calls": {"repeats": True, **_CLIENT_CALLS[wire.name]},
            # Prose before and after calls is one content, as in `data/reply.py`; what follows the
            # end of the turn is none
            "content": {
                "close_pattern": rf"\s*(?:{ends}).*",
                "content": "text",
                "repeats": True,
                "join": "\n\n",
            },
        },
    }
