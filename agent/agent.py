"""The think-act-observe loop over one chat: `Agent.ask` is the loop, the methods below its steps.

    render      the question as a turn of ids; the first one begins with the tools' signatures
    generate    the model's turn, with the ids forbidden that only the chat itself may place
    parse       that turn as thinking, prose and calls, good ones and broken ones
    run         the calls, in a child process (`agent/toolbox.py`)
    append      one result per call as the tools' turn, and generate again

until a turn has no call in it: that one is the answer.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agent.guides import name_guide
from agent.toolbox import ToolBox
from data.chat import Reply, parse_reply, render_prompt
from data.conversation import DEFAULT_PROMPT, Conversation, Message, ToolCall, ToolResult
from data.tokenizer import Tokenizer
from data.tool_calls import CallError, Outcome
from data.tool_schema import as_tools
from model.generate import Sampling, generate
from model.transformer import Gemma2

# Replies with calls to one question. The reply after them may not call, so every question ends.
MAX_ROUNDS = 8
# Calls of one reply that are run: a model in a loop writes hundreds, and each may use up its time.
MAX_CALLS = 8
# Replies to one question in which the same call is run. Asking a clock twice has a reason; a call
# in four replies is a loop, and the next reply has to answer with what is known.
MAX_REPEATS = 3
# Characters of one result. Cut before it is encoded, which takes a second for each megabyte.
MAX_RESULT_CHARACTERS = 8000
QUESTION_SECONDS = 120.0  # for all calls of one question together

NO_TOOLS = CallError("unknown_tool", "there are no tools in this chat", "answer without a call")
TOO_MANY = CallError(
    "too_many_calls",
    f"at most {MAX_CALLS} calls at once are run",
    "make fewer calls at once",
)
OUT_OF_TIME = CallError(
    "timeout",
    "the tools have used up the seconds of this question",
    "answer with what is known",
)
REPEATED = CallError(
    "repeated_call",
    "this call was made before; its result stands above",
    "answer with that result",
)


@dataclass(frozen=True)
class Event:
    """One thing that happened while a question was answered."""

    kind: str  # think, tool_call, tool_response, answer or error
    content: Any  # a JSON value


class Agent:
    """One chat with a model and, optionally, tools.

    The chat is a list of ids that only grows while a question is answered. What the model wrote is
    never decoded and encoded again, since other ids can spell the same text: each prompt begins
    with the prompt before it, id for id, and broken calls stay as they were written.
    """

    def __init__(
        self,
        model: Gemma2,
        tokenizer: Tokenizer,
        toolbox: ToolBox | None = None,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        question_seconds: float = QUESTION_SECONDS,
        free: bool = False,
    ) -> None:
        """max_new_tokens: of one reply; a question may take several. Greedy without `sampling`.

        question_seconds: what the tools may take for one question, all calls together.
        free: whether calls may have names that are not on offer.
        """
        self.model, self.tokenizer, self.toolbox = model, tokenizer, toolbox
        self.sampling, self.max_new_tokens = sampling or Sampling(), max_new_tokens
        self.question_seconds = self.seconds_left = question_seconds
        self.free = free
        self.limit = model.config.max_position_embeddings
        # The words and the JSON shape of the training rows: a model looks for its tools in them.
        wording = tokenizer.prompt or DEFAULT_PROMPT
        self.tools = as_tools(toolbox.tools, wording.shape) if toolbox else ()
        self.prompt = wording if self.tools else None
        self.ids: list[int] = []
        self.num_answered = 0  # ids up to the end of the last answer
        self.num_replies = 0

    def forget(self) -> None:
        """Starts a new chat."""
        self.num_answered = 0  # `ask` cuts the ids back to it

    def ask(self, text: str) -> Iterator[Event]:
        """Yields the events of one question: thoughts, calls, their results, the answer.

        A question that gets no answer is forgotten.
        Raises: ValueError for a question too long for the model, or that no tokenizer can encode.
        """
        # Here and not at the end: whoever reads the events may stop in the middle of a question.
        del self.ids[self.num_answered :]
        self.seconds_left = self.question_seconds
        self._append(Message("user", text))
        if len(self.ids) >= self.limit:
            raise ValueError(
                f"the question makes a conversation of {len(self.ids)} tokens, but the model has "
                f"{self.limit} positions; shorten it, or start anew with /new"
            )
        made: Counter[str] = Counter()  # call -> replies to this question that make it
        for number in range(MAX_ROUNDS + 1):
            # A model that goes in circles gets one reply in which it can only answer.
            may_call = number < MAX_ROUNDS and max(made.values(), default=0) <= MAX_REPEATS
            ids = self._generate(may_call)
            reply = parse_reply(ids, self.tokenizer, self.tools)
            if reply.thinking:
                yield Event("think", reply.thinking)
            if not reply.outcomes or not may_call:
                yield from self._finish(reply)
                return
            # A set: twins in one reply, such as two throws of a die, are meant, and count once.
            made.update({call.key for call in reply.outcomes if isinstance(call, ToolCall)})
            results = yield from self._run(reply.outcomes, made)
            self._append(Message("tool", results=results))
            if len(self.ids) >= self.limit:
                break
        yield Event(
            "error",
            f"the calls' results filled the model's {self.limit} positions; ask for less at once",
        )

    def _append(self, message: Message) -> None:
        """Renders a turn and the header of the model's next one, and appends their ids."""
        is_first = not self.ids
        # Built directly, not through `parse_row`: the encoder itself refuses half a surrogate pair.
        if is_first:
            turn = Conversation((message,), self.tools, self.prompt)
        else:
            turn = Conversation((message,))
        ids = render_prompt(turn, self.tokenizer)
        # Every rendered conversation begins with <bos>; this one goes on.
        self.ids += ids if is_first else ids[1:]

    def _generate(self, may_call: bool) -> list[int]:
        """Appends the model's next turn to the chat; returns its ids, a stop id included."""
        tokenizer = self.tokenizer
        wire = tokenizer.wire
        tags = wire.thinking.tags + wire.call.tags if may_call else wire.thinking.tags
        allowed = {tokenizer.tag_ids[tag] for tag in tags}
        # A model that could write <tool_response> would invent a result and believe it.
        forbidden = tokenizer.control_ids - allowed - set(tokenizer.stop_ids)
        sampling = dataclasses.replace(
            self.sampling,
            # One seed for the whole chat would draw the same numbers for every reply.
            seed=self.sampling.seed + self.num_replies,
            forbidden=tuple(sorted(forbidden)),
        )
        most = min(self.limit - len(self.ids), self.max_new_tokens)
        guide = None if self.free else name_guide(tokenizer, self.tools)
        ids = generate(self.model, [self.ids], most, tokenizer.stop_ids, sampling, [guide])[0]
        self.num_replies += 1
        # Either stop id ends a turn, and a reply that was cut has none: all are closed alike.
        written = [id for id in ids if id not in tokenizer.stop_ids]
        self.ids += [*written, tokenizer.end_of_turn_id, *tokenizer.encode("\n")]
        return ids

    def _run(
        self, outcomes: Sequence[Outcome], made: Counter[str]
    ) -> Generator[Event, None, tuple[ToolResult, ...]]:
        """Runs the calls in their order; returns a result for each, an error for a broken one."""
        results = []
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, ToolCall):
                yield Event("tool_call", {"name": outcome.name, "arguments": outcome.arguments})
            result: Any
            if number >= MAX_CALLS:
                result = TOO_MANY.as_result()
            elif isinstance(outcome, CallError):
                result = outcome.as_result()
            elif made[outcome.key] > MAX_REPEATS:
                result = REPEATED.as_result()
            elif self.toolbox is None:
                result = NO_TOOLS.as_result()
            elif self.seconds_left <= 0:
                result = OUT_OF_TIME.as_result()
            else:
                start = time.monotonic()
                result = self.toolbox.call(outcome.name, outcome.arguments, self.seconds_left)
                self.seconds_left -= time.monotonic() - start
            # All results together get half of what is left; the other half is for the answer.
            most = max(0, (self.limit - len(self.ids)) // (2 * len(outcomes)))
            text = self._as_text(result, most)
            results.append(ToolResult(text, outcome.name))
            yield Event("tool_response", {"name": outcome.name, "content": text})
        return tuple(results)

    def _as_text(self, result: Any, most: int) -> str:
        """A result as text of at most MAX_RESULT_CHARACTERS and about `most` tokens."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        # JSON can hold half a surrogate pair, which no tokenizer can encode; it becomes a "?".
        kept = text[:MAX_RESULT_CHARACTERS].encode(errors="replace").decode()
        ids = self.tokenizer.encode(kept)
        if len(ids) > most:
            kept = self.tokenizer.decode(ids[:most])
        return kept if len(kept) == len(text) else f"{kept} ... [cut: {len(text)} characters]"

    def _finish(self, reply: Reply) -> Iterator[Event]:
        """The answer, which makes the question part of the chat, or why there is none."""
        # A reply that was cut may so far be only spaces; it counts as an answer, and the next
        # question may ask for the rest.
        is_blank_start = not (reply.ended or reply.thinking or reply.outcomes)
        if reply.content or is_blank_start:
            self.num_answered = len(self.ids)
            yield Event("answer", reply.content)
        if not reply.ended:
            cut = "the reply was cut; raise --max-new-tokens, or start anew with /new"
            yield Event("error", cut)
        elif not reply.content:
            did = "only made more calls" if reply.calls else "wrote nothing"
            yield Event("error", f"no answer: the model {did}")
