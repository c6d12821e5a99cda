"""The think-act-observe loop: render the chat, generate, call tools, go on until there is an answer."""

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agent.evaluate import call_key
from agent.toolbox import ToolBox, call_error
from data.chat import Reply, parse_reply, render_prompt
from data.conversation import Conversation, Message, ToolCall, ToolResult
from data.schema import conversation_from
from data.tokenizer import Tokenizer
from data.tool_calls import Outcome
from model.generate import Sampling, generate
from model.transformer import Gemma2

MAX_ROUNDS = 8  # replies with calls before the loop gives up on an answer
MAX_CALLS = 8  # calls of one reply that are run
MAX_REPEATS = (
    3  # replies to one question whose same call is run; after that the model has to answer
)
MAX_RESULT_CHARACTERS = 8000
# The tags that a model itself writes, in either format; the others are the chat's.
THINK_TAGS, CALL_TAGS = ("<think>", "</think>"), ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
NO_TOOLS = call_error("unknown_tool", "there are no tools in this chat", "answer without a call")
TOO_MANY = call_error(
    "too_many_calls", f"at most {MAX_CALLS} calls at once are run", "make fewer calls at once"
)
REPEATED = call_error(
    "repeated_call", "this call was made before; its result stands above", "answer with that result"
)


@dataclass(frozen=True)
class Event:
    """One thing that happened: kind is think, tool_call, tool_response, answer or error; content is JSON."""

    kind: str
    content: Any


class Agent:
    """One chat with a model and, optionally, tools. `ask` yields what happens until the model has answered.

    The chat is kept as ids: what the model wrote goes on standing exactly as it wrote it, broken calls too.
    """

    def __init__(
        self, model: Gemma2, tokenizer: Tokenizer, toolbox: ToolBox | None, args: argparse.Namespace
    ) -> None:
        self.model, self.tokenizer, self.toolbox = model, tokenizer, toolbox
        self.max_new_tokens = args.max_new_tokens
        self.sampling = Sampling(args.temperature, args.top_p, args.seed)
        self.ids: list[int] = []
        self.num_answered = (
            0  # ids up to the last answer; what comes after belongs to a question without one
        )
        self.num_replies = 0

    def forget(self) -> None:
        """Starts a new chat."""
        self.num_answered = 0

    def ask(self, text: str) -> Iterator[Event]:
        """Events of one question: thoughts, calls, their results, the answer. A question without an answer is forgotten.

        Raises: ValueError for a question that is too long for the model, or that no tokenizer can encode.
        """
        del self.ids[self.num_answered :]
        self._add(Message("user", text))
        if self.room < 1:
            raise ValueError(
                f"the question makes a conversation of {len(self.ids)} tokens, but the model has "
                f"{self.limit} positions; shorten it, or start anew with /new"
            )
        made: Counter[str] = Counter()
        for number in range(MAX_ROUNDS + 1):
            # The last reply cannot call: it has to answer with what it knows.
            may_call = number < MAX_ROUNDS and max(made.values(), default=0) <= MAX_REPEATS
            reply = self._reply(may_call)
            if reply.thinking:
                yield Event("think", reply.thinking)
            if not reply.outcomes or not may_call:
                yield from self._finish(reply)
                return
            made.update({call_key(call) for call in reply.calls})
            yield from self._run_all(reply.outcomes, made)
            if self.room < 1:
                break
        yield Event(
            "error",
            f"the calls' results filled the model's {self.limit} positions; ask for less at once",
        )

    def _finish(self, reply: Reply) -> Iterator[Event]:
        """The answer, or why there is none."""
        # A cut reply may hold no more than spaces.
        is_blank_start = not (reply.ended or reply.thinking or reply.outcomes)
        if reply.content or is_blank_start:
            self.num_answered = len(self.ids)
            yield Event("answer", reply.content)
        if not reply.ended:
            yield Event(
                "error", "the reply was cut; raise --max-new-tokens, or start anew with /new"
            )
        elif not reply.content:
            yield Event(
                "error",
                "no answer: the model "
                + ("only made more calls" if reply.calls else "wrote nothing"),
            )

    @property
    def limit(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def room(self) -> int:
        """How many tokens the model can still write."""
        return self.limit - len(self.ids)

    def _add(self, message: Message) -> None:
        """Appends a turn and the header of the model's next one; the first turn brings the system text and the tools."""
        tools = self.toolbox.tools if self.toolbox else []
        is_first = not self.ids
        turn = (
            conversation_from(tools, [message], self.tokenizer.prompt)
            if is_first
            else Conversation((message,))
        )
        self.ids += render_prompt(turn, self.tokenizer)[0 if is_first else 1 :]  # <bos> stands once

    def _reply(self, may_call: bool) -> Reply:
        """The model's next turn, appended to the chat."""
        tokenizer = self.tokenizer
        tags = (*THINK_TAGS, *CALL_TAGS) if may_call else THINK_TAGS
        # Ids that only the chat itself may place: a model that writes its own tool result would believe it.
        allowed = {tokenizer.tag_ids[tag] for tag in tags if tag in tokenizer.tag_ids} | set(
            tokenizer.stop_ids
        )
        forbidden = tuple(sorted(tokenizer.control_ids - allowed))
        seed = self.sampling.seed + self.num_replies  # else every reply would draw the same numbers
        sampling = dataclasses.replace(self.sampling, seed=seed, forbidden=forbidden)
        new = generate(
            self.model,
            [self.ids],
            min(self.room, self.max_new_tokens),
            tokenizer.stop_ids,
            sampling,
        )[0]
        self.num_replies += 1
        written = [id for id in new if id not in tokenizer.stop_ids]
        self.ids += [*written, tokenizer.end_of_turn_id, *tokenizer.encode("\n")]
        return parse_reply(new, tokenizer, self.toolbox.tools if self.toolbox else ())

    def _run_all(self, outcomes: Sequence[Outcome], made: Counter[str]) -> Iterator[Event]:
        """Runs the calls in their order and appends the tools' turn: one result per call, broken ones too."""
        results = []
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, ToolCall):
                yield Event("tool_call", {"name": outcome.name, "arguments": outcome.arguments})
            result = TOO_MANY if number >= MAX_CALLS else self._run(outcome, made)
            # All results together may fill half of what is left.
            text = self._shorten(result, max(0, self.room // (2 * len(outcomes))))
            results.append(ToolResult(text, outcome.name))
            yield Event("tool_response", {"name": outcome.name, "content": text})
        self._add(Message("tool", results=tuple(results)))

    def _run(self, outcome: Outcome, made: Counter[str]) -> Any:
        """What one tool gives, or what is wrong with its call."""
        if not isinstance(outcome, ToolCall):
            return call_error(outcome.code, outcome.message, outcome.hint)
        if made[call_key(outcome)] > MAX_REPEATS:
            return REPEATED
        return self.toolbox.call(outcome.name, outcome.arguments) if self.toolbox else NO_TOOLS

    def _shorten(self, result: Any, most: int) -> str:
        """A result as text of at most MAX_RESULT_CHARACTERS and about `most` tokens."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        kept = (
            text[:MAX_RESULT_CHARACTERS].encode(errors="replace").decode()
        )  # half a surrogate pair is no character
        ids = self.tokenizer.encode(kept)
        kept = kept if len(ids) <= most else self.tokenizer.decode(ids[:most])
        return kept if len(kept) == len(text) else f"{kept} ... [cut: {len(text)} characters]"
