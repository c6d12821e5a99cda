"""Training rows changed a little, so that a model reads its tools and learns no row by heart.

Five kinds, each drawn for each row by itself:

    shuffle   the tools come in another order
    near      one or two tools that are almost the one called stand beside it
    names     tools and arguments have names without a meaning, so that descriptions decide
    none      the tool that was called is gone, and the answer says that none fits
    missing   a required value is gone from the question, and the answer asks for it

A row to which a kind cannot be applied stays as it is. The same seed and rows give the same result.
Source of the masked names: "Hammer: Robust Function-Calling for On-Device Language Models via
Function Masking" (arXiv:2410.04587).
"""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.conversation import Conversation, Message, Tool, ToolCall
from data.tool_schema import as_shape

# The share of rows that each kind is tried on where the flag gives none.
SHARES = {"shuffle": 0.5, "near": 0.2, "names": 0.3, "none": 0.1, "missing": 0.1}
NONE_FITS = (
    "None of the functions that I was given can do this.",
    "I cannot do that with the functions on offer: none of them fits.",
    "No function here fits this request.",
    "The tools that I have do not cover this.",
)
MISSING = (
    "Which {argument} should I use?",
    "I need the {argument} for this. What is it?",
    "Please tell me the {argument} first.",
    "What is the {argument}?",
)
# Names and descriptions of tools that are almost the one called, and the wrong one to call
NEAR = (
    ("archived", "Works on archived records alone. {about}"),
    ("draft", "Prepares a draft and does nothing yet. {about}"),
    ("bulk", "Takes a file with many requests at once. {about}"),
    ("sandbox", "For tests: gives made-up results. {about}"),
    ("legacy", "Deprecated, do not call it any more. {about}"),
)
# A value leaves the question together with the word that leads to it, or the question would limp
_LEAD = r"(?<=\w)\s+(?:in|at|for|from|to|on|of|with|by|named|called)\s+(?:the\s+)?"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def read_shares(text: str | None) -> dict[str, float]:
    """Read "all", or KIND[=SHARE] with commas between; None is no kind.

    Raises: ValueError for an unknown kind, a kind given twice, or a share outside 0 to 1.
    """
    shares: dict[str, float] = {}
    for part in (text or "").split(",") if text is not None else ():
        name, sign, word = part.strip().partition("=")
        kinds = list(SHARES) if name == "all" else [name]
        try:
            share = float(word) if sign else None
        except ValueError:
            share = -1.0
        is_share = share is None or 0 <= share <= 1
        if set(kinds) - set(SHARES) or set(kinds) & set(shares) or not is_share:
            raise ValueError(
                f"--augment: expected all, or some of {', '.join(SHARES)}, each once and with a "
                f"share from 0 to 1, got {part.strip()!r}; write for example names=0.3,shuffle"
            )
        shares |= {kind: SHARES[kind] if share is None else share for kind in kinds}
    return shares


def augment(
    rows: Sequence[Conversation], shares: Mapping[str, float], seed: int
) -> tuple[list[Conversation], Counter[str]]:
    """Return the rows, some of them changed, and how many each kind has changed.

    A row that stands there twice, by its data set's weight, is changed twice in its own way.
    """
    counts: Counter[str] = Counter({kind: 0 for kind in shares})
    pool = {tool.name: tool for row in rows for tool in row.tools}
    others = list(pool.values())
    changed = []
    for place, row in enumerate(rows):
        rng = random.Random(f"augment {seed} {place}")  # a string: no other draw has its numbers
        draws = {kind: rng.random() for kind in SHARES}  # all of them, whatever kinds are asked for
        for kind, change in CHANGES.items():
            if draws[kind] < shares.get(kind, 0.0) and row.tools:
                after = change(row, others, rng)
                counts[kind] += after is not None
                row = after or row
        changed.append(row)
    return changed, counts


def _first_call(row: Conversation) -> int | None:
    """The place of the first turn that calls, if it answers a user's; None if there is none."""
    turns = row.messages
    place = next((i for i, turn in enumerate(turns) if turn.calls), None)
    return place if place and turns[place - 1].role == "user" and turns[place].trained else None


def _called(row: Conversation) -> set[str]:
    return {call.name for turn in row.messages for call in turn.calls}


def _cut(row: Conversation, place: int, thinking: str, answer: str) -> tuple[Message, ...]:
    """The turns up to one of the model's, which answers in words; it thinks if it did before."""
    turn = row.messages[place]
    thought = thinking if turn.thinking else ""
    return (*row.messages[:place], Message("model", answer, thought, trained=turn.trained))


def _shuffle(row: Conversation, others: Sequence[Tool], rng: random.Random) -> Conversation | None:
    tools = rng.sample(row.tools, len(row.tools))
    return dataclasses.replace(row, tools=tuple(tools)) if tuple(tools) != row.tools else None


def add_near(
    row: Conversation,
    others: Sequence[Tool],
    rng: random.Random,
    variants: Sequence[tuple[str, str]] = NEAR,
) -> Conversation | None:
    """One or two tools beside one that is called, almost the same; None for a row without calls.

    variants: what comes after its name, and its description, with {about} for the first one's.
    """
    called = [tool for tool in row.tools if tool.name in _called(row)]
    if not called:
        return None
    tool, tools = rng.choice(called), list(row.tools)
    for word, about in rng.sample(variants, rng.randint(1, 2)):
        name = f"{tool.name}_{word}"
        if name not in {other.name for other in tools}:
            near = dataclasses.replace(
                tool, name=name, description=about.format(about=tool.description).strip()
            )
            # Anywhere: a tool that always came last would be known by its place
            tools.insert(rng.randint(0, len(tools)), near)
    return dataclasses.replace(row, tools=tuple(tools)) if len(tools) > len(row.tools) else None


def _remove_tool(
    row: Conversation, others: Sequence[Tool], rng: random.Random
) -> Conversation | None:
    place, called = _first_call(row), _called(row)
    if place is None:
        return None
    tools = [tool for tool in row.tools if tool.name not in called]
    foreign = [tool for tool in others if tool.name not in row.tool_names]
    if not tools and foreign:  # a row with one tool gets another row's: an empty list is no choice
        tools = [as_shape(rng.choice(foreign), row.tools[0].shape)]
    if not tools:
        return None
    answer = _cut(row, place, "None of the functions fits this request.", rng.choice(NONE_FITS))
    return dataclasses.replace(row, tools=tuple(tools), messages=answer)


def _remove_value(
    row: Conversation, others: Sequence[Tool], rng: random.Random
) -> Conversation | None:
    place = _first_call(row)
    if place is None or len(row.messages[place].calls) != 1:
        return None
    (call,), asked = row.messages[place].calls, row.messages[place - 1]
    tool = next((tool for tool in row.tools if tool.name == call.name), None)
    for argument in rng.sample(tool.required, len(tool.required)) if tool else ():
        question = _without(asked.content, call.arguments.get(argument))
        if question is None:
            continue
        # number_of_guests, numberOfGuests
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", argument).lower()
        answer = rng.choice(MISSING).format(argument=words)
        turns = _cut(row, place, f"The request does not say the {words}.", answer)
        before = dataclasses.replace(asked, content=question)
        return dataclasses.replace(row, messages=(*turns[:-2], before, turns[-1]))
    return None


def _without(question: str, value: Any) -> str | None:
    """The question without a value that it names once, in other words; None if that cannot be."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value):
        return None
    text = rf"(?<!\w){re.escape(str(value))}(?!\w)"
    if len(re.findall(text, question, re.IGNORECASE)) != 1:
        return None
    # What follows must end the phrase: of "in Paris and Rome" half a list would be left.
    pattern = re.compile(_LEAD + text + r"(?=[.?!]|$| (?:today|tomorrow|now|please)\b)", re.I)
    found = pattern.search(question)
    return question[: found.start()] + question[found.end() :] if found else None


def _mask_names(
    row: Conversation, others: Sequence[Tool], rng: random.Random
) -> Conversation | None:
    """Only where descriptions say what the names said, and the chat itself names no tool."""
    said = " ".join([row.system, *(turn.content for turn in row.messages if turn.role == "user")])
    if any(not tool.description or _names(tool.name, said) for tool in row.tools):
        return None
    if _called(row) - {tool.name for tool in row.tools}:
        return None
    tools = {tool.name: f"func_{_nonsense(rng)}" for tool in row.tools}
    arguments = {
        tool.name: {
            name: f"arg_{_nonsense(rng)}"
            for name, schema in tool.parameters.get("properties", {}).items()
            # Without a description, the name is all that says what the argument is
            if isinstance(schema, Mapping) and schema.get("description")
        }
        for tool in row.tools
    }
    masked = tuple(_masked_tool(tool, tools[tool.name], arguments[tool.name]) for tool in row.tools)
    turns = tuple(_masked_turn(turn, tools, arguments) for turn in row.messages)
    return dataclasses.replace(row, tools=masked, messages=turns)


def _nonsense(rng: random.Random) -> str:
    return "".join(rng.choices(_LETTERS, k=5))


def _names(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def _masked_tool(tool: Tool, name: str, arguments: Mapping[str, str]) -> Tool:
    parameters = dict(tool.parameters)
    properties = parameters.get("properties", {})
    parameters["properties"] = {arguments.get(key, key): value for key, value in properties.items()}
    if tool.required:
        parameters["required"] = [arguments.get(key, key) for key in tool.required]
    return dataclasses.replace(tool, name=name, parameters=parameters)


def _masked_turn(
    turn: Message, tools: Mapping[str, str], arguments: Mapping[str, Mapping[str, str]]
) -> Message:
    """A turn with the new names in its calls, its results, and where the model speaks of tools."""
    calls = tuple(
        ToolCall(
            tools[call.name],
            {arguments[call.name].get(key, key): value for key, value in call.arguments.items()},
            call.id,
        )
        for call in turn.calls
    )
    results = tuple(
        dataclasses.replace(result, name=tools.get(result.name or "", result.name))
        for result in turn.results
    )
    thinking, content = (_renamed(text, tools) for text in (turn.thinking, turn.content))
    return dataclasses.replace(
        turn, thinking=thinking, content=content, calls=calls, results=results
    )


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for name, new in names.items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", new, text)
    return text


# Row, tools of other rows, generator -> the changed row; None where the kind cannot be applied
Change = Callable[[Conversation, Sequence[Tool], random.Random], Conversation | None]
# In this order: what is asked for must be decided while the names still have a meaning
CHANGES: dict[str, Change] = {
    "none": _remove_tool,
    "missing": _remove_value,
    "near": add_near,
    "shuffle": _shuffle,
    "names": _mask_names,
}
