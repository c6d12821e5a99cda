"""Changed rows: what each kind may change, what it must keep, and that a seed gives them again."""

import dataclasses
from typing import Any

import pytest

from data.augment import NEAR, SHARES, augment, read_shares
from data.call_check import bad_calls
from data.conversation import Conversation, Message, SystemPrompt, ToolCall, ToolResult
from data.tool_calls import read_tool
from data.tool_schema import as_tools


def tool(name: str, about: str, *required: str, **more: Any) -> Any:
    properties = {r: {"type": "string", "description": f"The {r}."} for r in required}
    schema = {"type": "object", "properties": properties | more, "required": list(required)}
    return read_tool({"name": name, "description": about, "parameters": schema})


WEATHER = tool("get_weather", "Tells the weather.", "city", "dayOf", days={"type": "integer"})
CLOCK = tool("get_time", "Tells the time.", "city")
MAIL = tool("mail.send", "Sends a mail.", "to")
CALL = ToolCall("get_weather", {"city": "Paris", "dayOf": "Monday", "days": 2}, "id")
ROW = Conversation(
    (
        Message("user", "What is the weather on Monday in Paris?"),
        Message("model", "I ask.", "get_weather fits, not my_get_weather.", (CALL,)),
        Message("tool", results=(ToolResult("get_weather: 7", "get_weather", "id"),)),
        Message("model", "get_weather says 7."),
    ),
    (WEATHER, CLOCK, MAIL),
    SystemPrompt("before", "after"),
    where="rows:1",
)


def changed(kind: str, row: Conversation = ROW, seed: int = 0, *others: Conversation) -> Any:
    """The row after one kind of change; None if it could not be applied."""
    rows, counts = augment([row, *others], {kind: 1.0}, seed)
    assert (rows[0] != row) == (
        counts[kind] > sum(r != o for r, o in zip(rows[1:], others, strict=True))
    )
    return rows[0] if rows[0] != row else None


def test_the_order_of_tools_alone_is_shuffled() -> None:
    rows = [row for seed in range(9) if (row := changed("shuffle", ROW, seed))]
    for row in rows:
        assert {t.name for t in row.tools} == {t.name for t in ROW.tools}
        assert dataclasses.replace(row, tools=ROW.tools) == ROW
    assert len({tuple(t.name for t in row.tools) for row in rows}) > 2
    assert changed("shuffle", dataclasses.replace(ROW, tools=(WEATHER,))) is None


def test_near_duplicates_stand_beside_the_tool_that_is_called() -> None:
    words = set()
    for seed in range(12):
        row = changed("near", ROW, seed)
        added = [t for t in row.tools if t not in ROW.tools]
        assert 1 <= len(added) <= 2 and [t for t in row.tools if t in ROW.tools] == list(ROW.tools)
        for near in added:
            word = near.name.removeprefix("get_weather_")
            assert near.description == dict(NEAR)[word].format(about="Tells the weather.")
            assert near.parameters == WEATHER.parameters
            words.add(word)
        assert row.messages == ROW.messages
    assert len(words) > 2
    quiet = dataclasses.replace(ROW, messages=ROW.messages[:1] + ROW.messages[3:])
    assert changed("near", quiet) is None


def test_masked_names_are_the_same_everywhere_and_the_calls_still_fit() -> None:
    row = changed("names")
    tools = {old.name: new for old, new in zip(ROW.tools, row.tools, strict=True)}
    weather = tools["get_weather"]
    assert len({t.name for t in row.tools}) == 3 and all(t.name[:5] == "func_" for t in row.tools)
    city, day = weather.required
    # An argument without a description keeps its name, which is all that tells what it is.
    assert list(weather.parameters["properties"]) == [city, day, "days"] and city[:4] == "arg_"
    turns = row.messages
    assert turns[1].calls == (ToolCall(weather.name, {city: "Paris", day: "Monday", "days": 2}),)
    assert turns[1].calls[0].id == "id" and turns[2].results[0].name == weather.name
    assert turns[1].thinking == f"{weather.name} fits, not my_get_weather."
    assert turns[3].content == f"{weather.name} says 7."
    assert (turns[0], turns[2].results[0].content) == (ROW.messages[0], "get_weather: 7")
    assert not bad_calls(row) and bad_calls(ROW) == bad_calls(row)


@pytest.mark.parametrize(
    "row",
    [
        dataclasses.replace(ROW, tools=(*ROW.tools, tool("f", "", "a"))),
        dataclasses.replace(ROW, system="Call mail.send at the end."),
        dataclasses.replace(ROW, messages=(Message("user", "Use get_time."), *ROW.messages[1:])),
        dataclasses.replace(ROW, tools=ROW.tools[1:]),
    ],
)
def test_names_that_must_stay_are_not_masked(row: Conversation) -> None:
    """Without a description, or named by the chat itself, or called without being on offer."""
    assert changed("names", row) is None


def test_without_its_tool_a_request_is_declined() -> None:
    row = changed("none")
    assert [t.name for t in row.tools] == ["get_time", "mail.send"]
    assert len(row.messages) == 2 and row.messages[0] == ROW.messages[0]
    reply = row.messages[1]
    assert not reply.calls and "function" in (reply.content + reply.thinking) and reply.thinking
    # A row with one tool gets another row's, in its own shape, and never an empty list.
    only = dataclasses.replace(ROW, tools=as_tools((WEATHER,), "compact"))
    assert changed("none", only) is None
    given = changed(
        "none", only, 0, dataclasses.replace(ROW, tools=(CLOCK,), messages=ROW.messages[:1])
    )
    assert [(t.name, t.shape) for t in given.tools] == [("get_time", "compact")]
    plain = dataclasses.replace(ROW.messages[1], thinking="")
    row = changed("none", dataclasses.replace(ROW, messages=(ROW.messages[0], plain)))
    assert row.messages[1].thinking == ""
    context = dataclasses.replace(ROW.messages[1], trained=False)
    assert changed("none", dataclasses.replace(ROW, messages=(ROW.messages[0], context))) is None


def test_a_missing_value_is_asked_for() -> None:
    seen = set()
    for seed in range(9):
        row = changed("missing", ROW, seed)
        question, reply = row.messages
        assert question.content == "What is the weather on Monday?"
        assert "city" in reply.content and reply.thinking == "The request does not say the city."
        assert not reply.calls and row.tools == ROW.tools
        seen.add(reply.content)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("Weather in paris, on Monday?", None),  # the list goes on behind it
        ("Paris on Monday", "Paris"),
        ("In Paris: will it rain on Monday?", "In Paris: will it rain?"),
        ("Is it Paris or Rome, on a day?", None),
        ("What about Paris in Paris?", None),  # named twice
        ("Is it warm in Parisian cafés?", None),  # another word
        ("How is it in the Paris tomorrow", "How is it tomorrow"),
    ],
)
def test_only_a_phrase_that_can_be_left_out_is(question: str, left: str | None) -> None:
    row = dataclasses.replace(ROW, messages=(Message("user", question), *ROW.messages[1:]))
    after = changed("missing", row)
    assert (after.messages[0].content if after else None) == left
    if after and left and "Monday" in question:
        assert "day of" in after.messages[1].content


def test_the_same_seed_gives_the_same_rows_and_each_repetition_its_own() -> None:
    rows = [ROW] * 200
    one, counts = augment(rows, SHARES, 1)
    assert one == augment(rows, SHARES, 1)[0] and one != augment(rows, SHARES, 2)[0]
    assert len({repr(row) for row in one}) > 20 and {row.where for row in one} == {"rows:1"}
    for kind, share in SHARES.items():
        assert 0.5 * share * 200 < counts[kind] < 1.5 * share * 200
    assert not bad_calls(one[0])
    # What one kind does does not depend on which others are asked for.
    names, _ = augment(rows, {"names": 0.3}, 1)
    both, _ = augment(rows, {"names": 0.3, "shuffle": 0.0}, 1)
    assert names == both
    assert augment(rows, {}, 1) == (rows, {})
    bare = Conversation((Message("user", "Hi"), Message("model", "Yo")))
    assert augment([bare], dict.fromkeys(SHARES, 1.0), 1)[0] == [bare]


def test_the_flag() -> None:
    assert read_shares(None) == {} and read_shares("all") == SHARES
    assert read_shares("names=0.5, shuffle") == {"names": 0.5, "shuffle": SHARES["shuffle"]}
    assert read_shares("all=1") == dict.fromkeys(SHARES, 1.0)
    for text in ("", "name", "names=2", "names=x", "names,names", "all,none", "names=nan"):
        with pytest.raises(ValueError, match="--augment: expected all, or some of shuffle, near"):
            read_shares(text)
