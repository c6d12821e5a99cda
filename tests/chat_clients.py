"""Programs that other people use, each with a task of two calls: python chat_clients.py NAME URL.

With a third argument, the name of a tool, a call is required until that tool has been called: the
embedded base was taught single steps, and answers after the first result if it is free to.

Run by test_serve_clients.py, in an interpreter that may be another one, because what they need does
not always go together with Transformers. Prints one line of JSON: what the client ended with.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

UNTIL = "".join(sys.argv[3:4])  # the tool before whose call no answer is accepted
MODEL, QUESTION = "first", "What is 17.5 times 23, and twice that?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": words,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "number"} for key in keys},
                "required": keys,
            },
        },
    }
    for name, words, keys in (
        ("multiply_numbers", "multiply two numbers", ["first", "second"]),
        ("double", "double a number", ["number"]),
    )
]
RUN: dict[str, Callable[..., float]] = {
    "multiply_numbers": lambda first, second: first * second,
    "double": lambda number: 2 * number,
}


def openai_client(url: str, stream: bool) -> list[Any]:
    """The calls and the answer; with a stream, put together from its pieces."""
    import openai

    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    seen: list[Any] = []
    for _ in range(4):
        message: Any
        is_done = not UNTIL or UNTIL in [name for name, _ in seen]
        given: Any = {"model": MODEL, "messages": messages, "tools": TOOLS}
        given["tool_choice"] = "auto" if is_done else "required"
        if stream:
            with client.chat.completions.stream(**given) as events:
                message = events.get_final_completion().choices[0].message
        else:
            answer = client.chat.completions.create(**given)
            message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return [*seen, message.content]
        for call in message.tool_calls:
            arguments = json.loads(call.function.arguments)
            seen.append([call.function.name, arguments])
            result = json.dumps(RUN[call.function.name](**arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return seen


def openai_odds(url: str) -> dict[str, Any]:
    """A forced tool, parallel calls, one call where one is wanted, errors, models."""
    import openai

    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    found: dict[str, Any] = {"models": [model.id for model in client.models.list()]}

    def ask(text: str, **options: Any) -> Any:
        said: Any = [{"role": "user", "content": text}]
        return client.chat.completions.create(model=MODEL, messages=said, tools=TOOLS, **options)

    forced: Any = {"type": "function", "function": {"name": "double"}}
    calls = ask("forced", tool_choice=forced).choices[0].message.tool_calls
    found["forced"] = [call.function.name for call in calls]
    for key, parallel in (("both", True), ("one", False)):
        choice = ask("both", parallel_tool_calls=parallel).choices[0]
        found[key] = [len(choice.message.tool_calls), choice.finish_reason]
    for key, options in (("n", {"n": 2}), ("model", {"model": "third"})):
        try:
            client.chat.completions.create(
                **{"model": MODEL, "messages": [{"role": "user", "content": "x"}], **options}
            )
        except openai.APIStatusError as error:
            found[key] = [type(error).__name__, error.code]
    return found


def smolagents_agent(url: str) -> Any:
    """The answer of a ToolCallingAgent, which ends by calling the tool final_answer."""
    from smolagents import OpenAIModel, ToolCallingAgent, tool

    @tool
    def multiply_numbers(first: float, second: float) -> float:
        """multiply two numbers

        Args:
            first: one number
            second: another number
        """
        return first * second

    @tool
    def double(number: float) -> float:
        """double a number

        Args:
            number: the number
        """
        return 2 * number

    model = OpenAIModel(model_id=MODEL, api_base=f"{url}/v1", api_key="none")
    more: dict[str, Any] = {}
    if UNTIL:
        # Its own prompts take 2,088 tokens, and the embedded base has 2,048 positions.
        planning = dict.fromkeys(
            "initial_plan update_plan_pre_messages update_plan_post_messages".split(), ""
        )
        final = {"pre_messages": "", "post_messages": ""}
        managed = {"task": "", "report": ""}
        more["prompt_templates"] = {
            "system_prompt": "Call one tool at a time, and final_answer with the answer.",
            "planning": planning,
            "managed_agent": managed,
            "final_answer": final,
        }
    # After its last step the agent asks for an answer in words, which the embedded base was taught;
    # to choose between the next tool and one called final_answer it was not.
    steps = 1 if UNTIL else 4
    agent = ToolCallingAgent(tools=[multiply_numbers, double], model=model, max_steps=steps, **more)
    agent.logger.level = -1
    if UNTIL:  # one step after the other, in one memory
        agent.run("What is 17.5 times 23?")
        return agent.run("What is the double of 402.5?", reset=False)
    return agent.run(QUESTION)


def langchain_agent(url: str) -> Any:
    """The last message of a ReAct agent of LangGraph's on langchain-openai's model."""
    from langchain_core.messages import SystemMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    @tool
    def multiply_numbers(first: float, second: float) -> float:
        """multiply two numbers"""
        return first * second

    @tool
    def double(number: float) -> float:
        """double a number"""
        return 2 * number

    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_retries=0)
    tools = [multiply_numbers, double]

    def bound(state: Any, runtime: Any) -> Any:
        called = [message.name for message in state["messages"] if message.type == "tool"]
        return model.bind_tools(tools, tool_choice="auto" if UNTIL in called else "required")

    agent = create_react_agent(bound if UNTIL else model, tools, prompt=SystemMessage(""))
    state = agent.invoke({"messages": [("user", QUESTION)]})
    return [state["messages"][-1].content, [message.type for message in state["messages"]]]


CLIENTS: dict[str, Callable[[str], Any]] = {
    "openai": lambda url: openai_client(url, stream=False),
    "openai-stream": lambda url: openai_client(url, stream=True),
    "openai-odds": openai_odds,
    "smolagents": smolagents_agent,
    "langchain": langchain_agent,
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](sys.argv[2])))
