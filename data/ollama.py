"""A Modelfile, so that `ollama create NAME -f Modelfile` imports a merged folder.

Untried: no machine that this was written on had Ollama. The template was run by Go's own
text/template, with the fields of Ollama's documentation (.System, .Tools, .Messages with .Role,
.Content, .Thinking and .ToolCalls). It writes JSON without the spaces that training saw, knows no
compact tools, and leaves <bos> to Ollama, as the template of Ollama's own gemma2 does.
Source: Ollama's docs, modelfile.md and template.md.
"""

import json

from data.conversation import DEFAULT_PROMPT, SystemPrompt
from data.wire import Block, WireFormat

# Go's templates cannot subtract: the last message is the one from which a slice has one element
_TEMPLATE = """\
{{- $asked := false }}
{{- range $i, $message := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if not $asked }}{{ $asked = true }}
{{- if $.System }}{{ $.System }}

{{ end }}
{{- if $.Tools }}{{ @BEFORE@ }}@TOOLS_OPEN@[
{{- range $n, $tool := $.Tools }}{{ if $n }}, {{ end }}{{ json @SHOWN@ }}{{ end -}}
]@TOOLS_CLOSE@{{ @AFTER@ }}

{{ end }}
{{- end }}
{{- .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ if .Thinking }}@THINKING_OPEN@{{ .Thinking }}@THINKING_CLOSE@{{ end }}
{{- .Content }}
{{- range $n, $call := .ToolCalls }}@CALL@{{ end }}@END@<end_of_turn>
{{ else if eq .Role "tool" }}<start_of_turn>tool
@RESULT@<end_of_turn>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<start_of_turn>model
{{ end }}
{{- end }}"""
_UNTRIED = "# Untried: written without Ollama at hand. ollama create NAME -f Modelfile\n"
_GREEDY = "PARAMETER temperature 0\n"
_MADE = '{"name": "{{ .Function.Name }}", "arguments": {{ json .Function.Arguments }}}'
_CALL = {
    "hermes": f"@CALL_OPEN@{_MADE}@CALL_CLOSE@",
    "mistral": "{{ if $n }}, {{ else }}@CALL_OPEN@[{{ end }}" + _MADE,
}
_END = {"hermes": "", "mistral": "{{ if .ToolCalls }}]{{ end }}"}
_RESULT = {
    "hermes": "@RESULT_OPEN@{{ .Content }}@RESULT_CLOSE@",
    "mistral": '@RESULT_OPEN@{"content": {{ json .Content }}}@RESULT_CLOSE@',
}


def modelfile(wire: WireFormat, prompt: SystemPrompt | None) -> str:
    """Return a Modelfile for a merged folder that it lies in."""
    # With a result's opening tag, or the model could go on and write the tool's result itself
    stops = "".join(f'PARAMETER stop "{stop}"\n' for stop in ("<end_of_turn>", *wire.turn_ends))
    if wire.name == "functiongemma":  # Ollama has a writer and a reader of its own for it
        return f"{_UNTRIED}FROM .\nRENDERER {wire.name}\nPARSER {wire.name}\n{stops}{_GREEDY}"
    prompt = prompt or DEFAULT_PROMPT
    shown = "$tool" if prompt.shape == "openai" else "$tool.Function"
    text = _TEMPLATE.replace("@SHOWN@", shown).replace("@CALL@", _CALL[wire.name])
    text = text.replace("@END@", _END[wire.name]).replace("@RESULT@", _RESULT[wire.name])
    for name in ("tools", "thinking", "call", "result"):
        block: Block = getattr(wire, name)
        text = text.replace(f"@{name.upper()}_OPEN@", f"{block.open}{block.gap}")
        text = text.replace(f"@{name.upper()}_CLOSE@", f"{block.gap}{block.close or ''}")
    # JSON's string literal is one of Go's too, and none of them can hold Modelfile's own quotes
    for name, words in (("BEFORE", prompt.before), ("AFTER", prompt.after)):
        literal = json.dumps(words).replace('"""', '\\"\\"\\"')
        text = text.replace(f"@{name}@", literal)
    return f'{_UNTRIED}FROM .\nTEMPLATE """{text}"""\n{stops}{_GREEDY}'
