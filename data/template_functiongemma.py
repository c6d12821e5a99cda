"""The parts of FunctionGemma's chat template that are its own: `data/functiongemma.py` in Jinja.

Separate because next to nothing of them is shared with the two formats that write JSON. Arguments
in a string of JSON cannot be written, since Jinja cannot read them: that is an error. A result that
is such a string stays one string, where the renderer writes an object by its keys.
"""

from typing import Any

# A name, a key, a value; `_write` of `data/functiongemma.py`
VALUES = """\
{%- macro called(name) -%}
  {%- set is_bare = name and name == name | trim and '{' not in name -%}
  {{- name if is_bare else '<escape>' + name + '<escape>' -}}
{%- endmacro -%}
{%- macro keyed(name) -%}
  {%- set odd = namespace(found=not name or name != name | trim) -%}
  {%- for character in name if character in ['{', '}', '[', ']', ':', ','] -%}
    {%- set odd.found = true -%}
  {%- endfor -%}
  {{- '<escape>' + name + '<escape>' if odd.found else name -}}
{%- endmacro -%}
{%- macro value(given) -%}
  {%- if given is string -%}{{- '<escape>' + given + '<escape>' -}}
  {%- elif given is mapping -%}
    {{- '{' -}}
    {%- for key, item in given | dictsort -%}
      {{- ('' if loop.first else ',') + keyed(key) + ':' + value(item) -}}
    {%- endfor -%}
    {{- '}' -}}
  {%- elif given is boolean or given is number or given is none -%}{{- given | tojson -}}
  {%- else -%}
    {{- '[' -}}
    {%- for item in given -%}{{- ('' if loop.first else ',') + value(item) -}}{%- endfor -%}
    {{- ']' -}}
  {%- endif -%}
{%- endmacro -%}
"""
# A schema with its types in capitals, `_in_capitals`; `left_out` are keys that are not shown
TOOL = """\
{%- macro kind(given) -%}
  {%- if given is string -%}{{- value(given | upper) -}}
  {%- else -%}
    {{- '[' -}}
    {%- for item in given -%}
      {{- ('' if loop.first else ',') + (value(item | upper) if item is string else value(item)) -}}
    {%- endfor -%}
    {{- ']' -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro entry(key, item, left_out) -%}
  {%- if key == 'type' and (item is string or item is iterable) -%}{{- kind(item) -}}
  {%- elif key in ['items', 'additionalProperties', 'not'] and item is mapping -%}
    {{- schema(item, []) -}}
  {%- elif key in ['anyOf', 'oneOf', 'allOf'] and item is iterable -%}
    {{- '[' -}}
    {%- for one in item -%}{{- ('' if loop.first else ',') + schema(one, []) -}}{%- endfor -%}
    {{- ']' -}}
  {%- elif key in ['properties', '$defs', 'definitions'] and item is mapping -%}
    {{- '{' -}}
    {%- for name, one in item | dictsort -%}
      {{- ('' if loop.first else ',') + keyed(name) + ':' + schema(one, left_out) -}}
    {%- endfor -%}
    {{- '}' -}}
  {%- else -%}{{- value(item) -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro schema(given, left_out) -%}
  {%- if given is mapping -%}
    {{- '{' -}}
    {%- set shown = namespace(any=false) -%}
    {%- for key, item in given | dictsort if key not in left_out -%}
      {{- (',' if shown.any else '') + keyed(key) + ':' + entry(key, item, []) -}}
      {%- set shown.any = true -%}
    {%- endfor -%}
    {{- '}' -}}
  {%- else -%}{{- value(given) -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro parameters(given) -%}
  {%- set keys = namespace(all=['type', 'properties']) -%}
  {%- for key, item in given.items() if key not in keys.all and item is not none -%}
    {%- set keys.all = keys.all + [key] -%}
  {%- endfor -%}
  {{- '{' -}}
  {%- for key in keys.all | sort -%}
    {{- ('' if loop.first else ',') + keyed(key) + ':' -}}
    {%- if key == 'type' -%}{{- kind(given.type or 'object') -}}
    {%- elif key == 'properties' -%}{{- entry(key, given.properties or {}, @LEFT_OUT@) -}}
    {%- else -%}{{- entry(key, given[key], []) -}}
    {%- endif -%}
  {%- endfor -%}
  {{- '}' -}}
{%- endmacro -%}
{%- macro declaration(tool) -%}
  {%- set inner = ['parameters', 'input_schema', 'inputSchema'] -%}
  {%- set keys = namespace(all=['parameters']) -%}
  {%- for key, item in tool.items() if key not in inner + ['name'] and item is not none -%}
    {%- set keys.all = keys.all + ([key] if item or key != 'description' else []) -%}
  {%- endfor -%}
  {{- 'declaration:' + called(tool.name) + '{' -}}
  {%- for key in keys.all | sort -%}
    {{- ('' if loop.first else ',') + keyed(key) + ':' -}}
    {%- if key == 'parameters' -%}
      {{- parameters(tool.parameters or tool.input_schema or tool.inputSchema or {}) -}}
    {%- else -%}{{- value(tool[key]) -}}
    {%- endif -%}
  {%- endfor -%}
  {{- '}' -}}
{%- endmacro -%}
"""
CALL = """\
{%- macro write(call) -%}
  {%- set given = call.arguments or {} -%}
  {%- if given is string and given | trim != '{}' -%}
    {{- raise_exception('expected arguments as an object, got a string; read its JSON first') -}}
  {%- endif -%}
  {{- 'call:' + called(call.name) + (value(given) if given is mapping else '{}') -}}
{%- endmacro -%}
"""
ONE_CALL = "{{- @CALL_OPEN@ + write(call.function or call) + @CALL_CLOSE@ -}}"
# Behind the name of the result's call
RESULT = """\
{{- 'response:' + called(named.name or 'unknown') -}}
      {%- if result.content is mapping -%}{{- value(result.content) -}}
      {%- else -%}{{- '{value:<escape>' + data(result.content) + '<escape>}' -}}
      {%- endif -%}
      {{- @RESULT_CLOSE@ -}}"""

# The developer's turn, then turn by turn. A call's turn ends with the mark of its first result, and
# is left open for it; the answer behind a result goes on in the same turn.
# Flags lie in a namespace, because Jinja forgets at a loop's end what was set inside.
BODY = """\
{%- if chat.system or tools -%}
  {{- '<start_of_turn>developer\\n' + chat.system -}}
  {%- if tools -%}
    {%- if @WORDING@ not in chat.system -%}
      {{- ('\\n\\n' if chat.system else '') + @WORDING@ -}}
    {%- endif -%}
    {%- for tool in tools -%}
      {{- @TOOLS_OPEN@ + declaration(tool.function or tool) + @TOOLS_CLOSE@ -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- set turn = namespace(open=false, results=[], sorted=[], next='') -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {%- set chat.calls = [] -%}
    {%- set turn.open = false -%}
    {%- set follows = not loop.first and loop.previtem.role == 'user' -%}
    {%- set said = text(message.content) -%}
    {{- ('\\n\\n' if said else '') if follows else '<start_of_turn>user\\n' -}}
    {{- said -}}
    {%- if loop.last or loop.nextitem.role != 'user' -%}{{- '<end_of_turn>\\n' -}}{%- endif -%}
  {%- elif message.role in ['assistant', 'model'] -%}
    {%- set single = message.function_call or [] -%}
    {%- set single = [single] if single is mapping else single -%}
    {%- set chat.calls = (message.tool_calls or []) + single -%}
    {{- '' if turn.open else '<start_of_turn>model\\n' -}}
    {%- set is_followed = loop.last or loop.nextitem.role in ['tool', 'function'] -%}
    {%- set turn.open = true if chat.calls and is_followed else false -%}
    {%- set end = @RESULT_OPEN@ if turn.open else '<end_of_turn>' -%}
    {%- if message.weight == 0 or message.train is false -%}{{- reply(message, chat.calls, end) -}}
    {%- else -%}
      {%- generation -%}{{- reply(message, chat.calls, end) -}}{%- endgeneration -%}
    {%- endif -%}
    {{- '' if turn.open else '\\n' -}}
  {%- elif message.role in ['tool', 'function'] -%}
    {%- if loop.first or loop.previtem.role not in ['tool', 'function'] -%}
      {%- set turn.results = [] -%}
      {%- set turn.sorted = [] -%}
      {%- set turn.next = '' -%}
      {%- for later in messages[loop.index0:] -%}
        {%- set is_other = later.role not in ['tool', 'function'] -%}
        {%- set turn.next = turn.next or (later.role if is_other else '') -%}
        {%- set turn.results = turn.results + ([] if turn.next else [later]) -%}
      {%- endfor -%}
      @SORT@
      {%- for result in turn.results -%}
      {{- '' if loop.first else @RESULT_OPEN@ -}}
      @RESULT@
      {%- endfor -%}
      {%- set turn.open = true if turn.next in ['', 'assistant', 'model'] else false -%}
      {{- '' if turn.open else '<end_of_turn>\\n' -}}
    {%- endif -%}
  @OTHERS@
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not turn.open -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

# Transformers' parser knows strings between marks of their own, and bare keys that are words
_STRING = r"<escape>(?:(?!<escape>).)*+<escape>"
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_PAIR = r"\s*\w+\s*:\s*(?&value)\s*"
_VALUE = (
    rf"(?P<value>{_STRING}|{_NUMBER}|true|false|null|\{{(?:{_PAIR}(?:,{_PAIR})*+|\s*)\}}"
    r"|\[(?:\s*(?&value)\s*(?:,\s*(?&value)\s*)*+|\s*)\])"
)
CLIENT_CALLS: dict[str, Any] = {
    "open_pattern": (
        r"(?s)\s*<start_function_call>\s*call:(?P<name>[^{<\s]+)"
        rf"(?=(?=\{{){_VALUE}\s*<end_function_call>)"
    ),
    "close_pattern": r"<end_function_call>\s*",
    "content": "json",
    "content_args": {"unquoted_keys": True, "string_delims": [["<escape>", "<escape>"]]},
    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
}
