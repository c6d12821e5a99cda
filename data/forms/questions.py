"""Forms of one question and what is due: xLAM, the Berkeley leaderboard, prompt and completion."""

import re
from collections.abc import Mapping
from typing import Any

from data.forms.plain import PlainRow, list_of, tools_of
from data.forms.python_types import read_type
from data.lenient_json import shorten
from data.tool_schema import is_optional

# Turns of a chat that was written out: (the mark in front of a role, the pattern of a turn)
_WRITTEN_TURNS = {
    "<|im_start|>": re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL),
    "<start_of_turn>": re.compile(r"<start_of_turn>(\w+)\n(.*?)(?:<end_of_turn>|\Z)", re.DOTALL),
}
_ENDS = re.compile(r"(?:\s|<\|im_end\|>|<end_of_turn>|<eos>|<\|endoftext\|>|</s>)+\Z")
_TOOLS = re.compile(r"(?P<tools>.*<tools>\s*[\[{].*</tools>)(?P<rest>.*)", re.DOTALL)


def xlam(row: Mapping[str, Any], _: list[Any]) -> PlainRow:
    """xLAM and APIGen: {"query", "tools", "answers": [{"name", "arguments"}]}, lists as JSON."""
    calls = list_of(row["answers"], "answers")
    if not calls:
        problem = "answers: expected a call, got none; a row without a due call needs a reply"
        raise ValueError(f"{problem} in words: give it under messages")
    tools = [_xlam_tool(tool) for tool in list_of(tools_of(row), "tools")]
    question = {"role": "user", "content": row["query"]}
    return PlainRow([question, {"role": "assistant", "tool_calls": calls}], tools)


def _xlam_tool(tool: Any) -> Any:
    """Make {argument: {"type": "List[int], optional"}} a JSON schema; other tools stay."""
    parameters = tool.get("parameters") if isinstance(tool, Mapping) else None
    if not isinstance(parameters, Mapping) or isinstance(parameters.get("properties"), Mapping):
        return tool
    if not all(isinstance(word, Mapping) for word in parameters.values()):
        return tool
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, word in parameters.items():
        schema, may_lack = read_type(str(word.get("type") or ""))
        rest = {key: item for key, item in word.items() if key not in ("type", "optional")}
        properties[name] = {**schema, **rest}
        if not (may_lack or is_optional(word)):
            required.append(name)
    schema = {"type": "object", "properties": properties}
    return {**tool, "parameters": schema | ({"required": required} if required else {})}


def bfcl(row: Mapping[str, Any], _: list[Any]) -> PlainRow:
    """The Berkeley leaderboard: {"question", "function"} and its answer file's "ground_truth".

    Of several accepted values the first is the one to learn; a value of "" may be left out.
    """
    question = row["question"]
    is_text = isinstance(question, str)
    turns: list[Any] = (
        [{"role": "user", "content": question}] if is_text else list_of(question, "question")
    )
    if turns and isinstance(turns[0], list | tuple):
        if len(turns) > 1:
            problem = f"question: expected one turn, got {len(turns)}; rows of several turns need"
            raise ValueError(f"{problem} the leaderboard's own simulation, so leave them out")
        turns = list(turns[0])
    if not row.get("ground_truth"):
        problem = "expected ground_truth, got none; put the answer file of the same name into"
        raise ValueError(f"{problem} possible_answer/ beside this file (irrelevance has none)")
    calls = []
    for answer in list_of(row["ground_truth"], "ground_truth"):
        if not isinstance(answer, Mapping) or len(answer) != 1:
            got = shorten(repr(answer))
            raise ValueError(f"ground_truth: expected {{name: arguments}}, got {got}; repair it")
        ((name, accepted),) = answer.items()
        calls.append({"name": name, "arguments": _first_accepted(accepted)})
    reply = {"role": "assistant", "tool_calls": calls}
    return PlainRow([*turns, reply], row["function"])


def _first_accepted(value: Any) -> Any:
    """Take the first accepted value of every argument, inside nested objects too."""
    if isinstance(value, Mapping):
        chosen = {}
        for key, options in value.items():
            # Parquet fills the arguments of other rows in with nulls
            listed = options if isinstance(options, list | tuple) else [options]
            if options is not None and listed and listed[0] != "":
                chosen[key] = _first_accepted(listed[0])
        return chosen
    return [_first_accepted(item) for item in value] if isinstance(value, list | tuple) else value


def prompt_completion(row: Mapping[str, Any], _: list[Any]) -> PlainRow:
    """{"prompt", "completion"}: lists of messages, or texts in which the tags stand.

    A prompt may be the bare question, a block of tools and the question, or a written-out chat.
    """
    prompt, completion = row["prompt"], row["completion"]
    messages = _written_turns(prompt) if isinstance(prompt, str) else list_of(prompt, "prompt")
    if isinstance(completion, str):
        written = _written_turns(completion)
        # A completion that opens no turn itself continues the one that the prompt has opened
        is_bare = len(written) == 1 and written[0]["role"] == "user"
        turns: list[Any] = [{"role": "assistant", "content": _ENDS.sub("", completion)}]
        messages += turns if is_bare else written
    else:
        messages += list_of(completion, "completion")
    return PlainRow(messages, tools_of(row), has_tags=isinstance(completion, str))


def _written_turns(text: str) -> list[dict[str, Any]]:
    """Return the turns of a written-out chat; any other text is the user's."""
    pattern = next((p for mark, p in _WRITTEN_TURNS.items() if mark in text), None)
    turns = [("user", text)]
    if pattern:
        turns = [(match[1], match[2]) for match in pattern.finditer(text)]
    messages: list[dict[str, Any]] = []
    for role, content in turns:
        content = content.strip()
        if role == "user" and content.startswith("<tool_response>"):
            role = "tool"  # Qwen's chat gives results to the user's role
        tools = _TOOLS.fullmatch(content) if role == "user" and not messages else None
        if tools:
            # What stands between the block and an empty line belongs to the block
            after, _, question = tools["rest"].partition("\n\n")
            question = question if after.strip() and question.strip() else tools["rest"]
            wording = tools["rest"].removesuffix(question)
            messages.append({"role": "system", "content": tools["tools"] + wording.rstrip()})
            content = question.strip()
        if content:  # an opened turn that is still empty is where the completion begins
            messages.append({"role": role, "content": content})
    return messages
