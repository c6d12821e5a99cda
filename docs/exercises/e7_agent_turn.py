"""Exercise 7: one turn of the agent loop.

The model writes a turn. If it calls, the tools are run and a turn with their results is appended,
and the model writes again; if not, its turn is the answer. As it is here, only the first of several
calls is run, and a tool that fails takes the whole program with it.
"""

import json
from collections.abc import Callable

from data.conversation import Message, ToolCall, ToolResult
from data.tool_calls import CallError


def turn(
    chat: list[Message],
    write: Callable[[list[Message]], Message],
    tools: dict[str, Callable[..., object]],
) -> bool:
    """Lets the model write, runs what it calls, appends both; True if it has to write again.

    A result's content is JSON. What goes wrong is a result too, the one that
    `CallError(code, message, hint).as_result()` gives.
    """
    reply = write(chat)
    chat.append(reply)
    if not reply.calls:
        return False
    call = reply.calls[0]
    content = json.dumps(tools[call.name](**call.arguments))
    chat.append(Message("tool", results=(ToolResult(content, call.name),)))
    return True


def divide(total: float, people: int) -> dict[str, float]:
    return {"share": total / people}


def run(*replies: Message) -> list[Message]:
    """The chat that comes of it if the model writes these turns, one after the other."""
    chat, script = [Message("user", "Share 90 among us.")], iter(replies)
    for _ in replies:
        if not turn(chat, lambda _: next(script), {"divide": divide}):
            break
    return chat


def calls(*arguments: dict[str, object], name: str = "divide") -> Message:
    return Message("model", calls=tuple(ToolCall(name, a) for a in arguments))


def test_every_call_gets_its_result_in_order_and_an_answer_ends_the_loop() -> None:
    asked = calls({"total": 90, "people": 3}, {"total": 90, "people": 2})
    chat = run(asked, Message("model", "30 or 45 each."), Message("model", "never written"))
    assert [message.role for message in chat] == ["user", "model", "tool", "model"]
    found = [(result.name, json.loads(result.content)) for result in chat[2].results]
    assert found == [("divide", {"share": 30.0}), ("divide", {"share": 45.0})]


def test_what_goes_wrong_is_a_result_that_the_model_can_read() -> None:
    wrong = (
        calls({"total": 90, "people": 0}),  # the tool raises
        calls({"total": 90, "guests": 3}),  # there is no such argument
        calls({"total": 90, "people": 3}, name="split"),  # there is no such tool
    )
    for asked in wrong:
        chat = run(asked, Message("model", "I cannot tell."))
        assert len(chat) == 4 and chat[3].content == "I cannot tell."
        error = json.loads(chat[2].results[0].content)["error"]
        assert set(error) == set(CallError("", "", "").as_result()["error"])
