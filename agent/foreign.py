"""A chat template that came with an adapter: it must ask as this program asks.

An adapter answers the prompts that it was trained on. One that was trained elsewhere may bring a
template with other turns (the course's writes `<start_of_turn>human`); its model, asked in ours,
answers badly and nobody sees why. Templates are rendered in Jinja's sandbox, as Transformers does.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.json_file import read_object, read_text
from data.conversation import DEFAULT_PROMPT
from data.template import chat_template
from data.tokenizer import Tokenizer

FILE = "chat_template.jinja"
# A chat and, for templates that write tools, one with a call and its result
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye"},
]
TOOL = {"name": "f", "description": "Does it.", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "id": "call", "function": {"name": "f", "arguments": {"a": 1}}}
WITH_TOOLS: list[dict[str, Any]] = [
    CHAT[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call", "name": "f", "content": "7"},
]


def check_template(adapter: Path, tokenizer: Tokenizer) -> None:
    """Refuses an adapter whose own chat template writes other prompts than this program.

    Raises: ValueError with both beginnings and what to do.
    """
    source, where = _own_template(adapter)
    if source is None:
        return
    ours = chat_template(tokenizer.wire, tokenizer.prompt or DEFAULT_PROMPT)
    if source == ours:
        return
    probes: list[tuple[list[dict[str, Any]], list[Any] | None]] = [(CHAT, None)]
    if "tools" in source:
        probes.append((WITH_TOOLS, [{"type": "function", "function": TOOL}]))
    for messages, tools in probes:
        wanted = render(ours, messages, tools)
        try:
            got = render(source, messages, tools)
        except (TemplateError, TypeError, ValueError) as error:
            got = f"an error ({error})"
        if got != wanted:
            place = next(
                (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), 0
            )
            raise ValueError(
                f"{where}: this adapter was trained with other prompts: its template writes "
                f"{got[place : place + 40]!r} where this program writes "
                f"{wanted[place : place + 40]!r}; serve it with Transformers or vLLM, or remove "
                "the template if training did not use it"
            )


def _own_template(adapter: Path) -> tuple[str | None, Path]:
    """The chat template in an adapter's folder, and its file."""
    path, config = adapter / FILE, adapter / "tokenizer_config.json"
    # The file first, as in Transformers, where it takes the place of the entry in the config
    if path.is_file():
        return read_text(path), path
    template = (read_object(config) if config.is_file() else {}).get("chat_template")
    return (template if isinstance(template, str) else None), config


def render(template: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    """The text that Transformers would tokenize.

    Raises: jinja2.TemplateError for a template that is none, or refuses the messages.
    """

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    # As in Transformers; Jinja's own filter escapes <, > and &, because it is made for HTML
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    # The blocks that mark what is trained: they write nothing
    for word in ("generation", "endgeneration"):
        for dashes in ("%s", "-%s", "%s-", "-%s-"):
            before, after = dashes.split("%s")
            template = template.replace(f"{{%{before} {word} {after}%}}", f"{{#{before} {after}#}}")
    words = {"bos_token": "<bos>", "eos_token": "<eos>", "add_generation_prompt": True}
    return environment.from_string(template).render(messages=messages, tools=tools, **words)
