"""The think-act-observe loop over one chat: `Agent.ask` is the loop, the methods below its steps.

    render      the question as a turn of ids; the first one begins with the tools' signatures
    write       the model's turn, id by id, read as it comes: thinking, prose, calls
    run         the calls, in a child process (`agent/toolbox.py`)
    append      one result per call as the tools' turn, and write again

until a turn has no call in it, which is then the answer, or a limit is reached (`agent/limits.py`).
"""

import dataclasses
import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from agent.guides import CallRule, guide_for
from agent.limits import (
    DECLINED,
    MAX_CALLS,
    MAX_REPEATS,
    NO_TOOLS,
    OUT_OF_TIME,
    REPEATED,
    TOO_MANY,
    Event,
    Limits,
    Spent,
    cut_result,
    is_loop,
)
from agent.toolbox import ToolBox
from data.chat import Reply, render_prompt, turn_end
from data.conversation import DEFAULT_PROMPT, Conversation, Message, ToolCall, ToolResult
from data.reply_reader import Part, ReplyStream
from data.tokenizer import Tokenizer
from data.tool_calls import CallError, Outcome
from data.tool_schema import as_tools
from model.generate import Context, Sampling, decode
from model.transformer import Gemma2


class Agent:
    """One chat with a model and, optionally, tools: model, tokenizer, cache, and what was said.

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
        limits: Limits | None = None,
        rule: CallRule | None = None,
    ) -> None:
        """Greedy without `sampling`; `rule` says what a call may be, by default that names are."""
        self.model, self.tokenizer, self.toolbox = model, tokenizer, toolbox
        self.sampling, self.limits = sampling or Sampling(), limits or Limits()
        self.rule = rule or CallRule()
        self.positions = model.config.max_position_embeddings
        # The words and the JSON shape of the training rows: a model looks for its tools in them.
        wording = tokenizer.prompt or DEFAULT_PROMPT
        self.tools = as_tools(toolbox.tools, wording.shape) if toolbox else ()
        self.prompt = wording if self.tools else None
        self.ids: list[int] = []
        self.context = Context()  # the keys and values of these ids
        self.num_answered = 0  # ids up to the end of the last answer
        self.num_replies = 0
        self.reply_start = 0  # ids before the last reply
        self.spent = Spent()
        self.cut = ""  # why the last reply was cut

    def forget(self) -> None:
        """Starts a new chat."""
        self.num_answered = 0  # `ask` cuts the ids back to it

    def ask(self, text: str, *, stream: bool = False) -> Iterator[Event]:
        """Yields the events of one question: thoughts, calls, their results, the answer, done.

        stream: whether texts come in pieces too, as they are written. A question that gets no
        answer is forgotten.
        Raises: ValueError for a question too long for the model, or that no tokenizer can encode.
        """
        # Here and not at the end: whoever reads the events may stop in the middle of a question.
        del self.ids[self.num_answered :]
        self.spent = Spent()
        self._append(Message("user", text))
        if len(self.ids) >= self.positions:
            raise ValueError(
                f"the question makes a conversation of {len(self.ids)} tokens, but the model has "
                f"{self.positions} positions; shorten it, or start anew with /new"
            )
        for event in self._events():
            if stream or not event.kind.endswith("_delta"):
                yield event
        spent = self.spent
        seconds = {"tool": round(spent.tool_seconds, 3), "reply": round(spent.reply_seconds, 3)}
        yield Event("done", {"replies": spent.replies, "tokens": spent.tokens, "seconds": seconds})

    def _events(self) -> Iterator[Event]:
        made = self.spent.made
        for number in range(self.limits.rounds + 1):
            # A model that goes in circles gets one reply in which it can only answer.
            may_call = number < self.limits.rounds and max(made.values(), default=0) <= MAX_REPEATS
            reply = yield from self._write(may_call)
            if reply.ended and not (reply.content or reply.outcomes or reply.thinking):
                reply = yield from self._write(may_call, again=True)
            if not reply.outcomes or not may_call or self.spent.exceeds(self.limits):
                yield from self._finish(reply)
                return
            # A set: twins in one reply, such as two throws of a die, are meant, and count once.
            made.update({call.key for call in reply.outcomes if isinstance(call, ToolCall)})
            results = yield from self._run(reply.outcomes)
            self._append(Message("tool", results=results))
            if len(self.ids) >= self.positions:
                break
        yield Event(
            "error",
            f"the calls' results filled the model's {self.positions} positions; "
            "ask for less at once",
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

    def _write(self, may_call: bool, *, again: bool = False) -> Generator[Event, None, Reply]:
        """Appends the model's next turn to the chat, and yields what it says as it is written.

        again: after a turn that said nothing, which is taken back.
        """
        tokenizer, start = self.tokenizer, time.monotonic()
        stream = ReplyStream(tokenizer, self.tools)
        if again:
            del self.ids[self.reply_start :]
        self.reply_start, self.cut = len(self.ids), ""
        ids: list[int] = []
        is_over = False
        for id in self._decode(may_call, again):
            is_over = self._is_after_call(ids, id, stream)
            if is_over:
                break
            ids.append(id)
            yield from self._tell(stream.feed(id), stream, may_call)
            self.cut = self._why_cut(ids, start)
            if self.cut or stream.ended:
                break
        parts, reply = stream.end(ended=is_over)
        yield from self._tell(parts, stream, may_call)
        self.spent.replies, self.num_replies = self.spent.replies + 1, self.num_replies + 1
        self.spent.tokens += len(ids)
        self.spent.reply_seconds += time.monotonic() - start
        # Either stop id ends a turn, and a reply that was cut has none: all are closed alike.
        written = [id for id in ids if id not in tokenizer.stop_ids]
        self.ids += [*written, *turn_end(written, tokenizer)]
        return reply

    def _decode(self, may_call: bool, again: bool) -> Iterator[int]:
        """The ids of the model's next turn, a stop id included, as it chooses them."""
        tokenizer = self.tokenizer
        sampling = dataclasses.replace(
            self.sampling,
            # One seed for the whole chat would draw the same numbers for every reply.
            seed=self.sampling.seed + self.num_replies,
            forbidden=tokenizer.forbidden_ids(may_call),
        )
        most = min(self.positions - len(self.ids), self.limits.new_tokens)
        if self.limits.question_tokens is not None:
            most = max(1, min(most, self.limits.question_tokens - self.spent.tokens))
        # Only the first reply to a question can be forced to call, or it would call for ever.
        choice = self.rule.choice if self.spent.replies == 0 else "auto"
        rule = CallRule(self.rule.names, choice if may_call else "none")
        guide = guide_for(tokenizer, self.tools, rule, room=most, must_speak=again)
        guides, context = [guide], self.context
        steps = decode(
            self.model, [self.ids], most, tokenizer.stop_ids, sampling, guides, context=context
        )
        return (id for (id,) in steps if id is not None)

    def _is_after_call(self, ids: Sequence[int], id: int, stream: ReplyStream) -> bool:
        """True if a call has ended and no other one begins: the turn is over, said or not."""
        tokenizer = self.tokenizer
        tags = [tokenizer.tag_ids[tag] for tag in tokenizer.wire.call.tags]
        # Inside a thought a call is a part of it
        if len(tags) < 2 or stream.reader.block is not None:
            return False
        if id in (*tags, *tokenizer.stop_ids) or self._is_space(id):
            return False
        return next((one for one in reversed(ids) if not self._is_space(one)), None) == tags[1]

    def _is_space(self, id: int) -> bool:
        return not (self.tokenizer.spelling(id) or b"x").strip()

    def _why_cut(self, ids: Sequence[int], start: float) -> str:
        """What ends a reply before its end; "" if nothing does."""
        used = self.spent.reply_seconds + time.monotonic() - start
        if used > self.limits.reply_seconds:
            return f"writing took over {self.limits.reply_seconds:g} s; raise --reply-seconds"
        loop = self.limits.loop
        # Calls that are alike are counted instead, and answered (MAX_CALLS, MAX_REPEATS)
        if loop and self.tokenizer.control_ids.isdisjoint(ids[-loop:]) and is_loop(ids, loop):
            return "the model says one thing again and again; ask in other words"
        most = self.limits.question_tokens
        if most is not None and self.spent.tokens + len(ids) >= most:
            return f"the replies have {most} tokens; raise --question-tokens"
        return ""

    def _tell(self, parts: Iterable[Part], stream: ReplyStream, may_call: bool) -> Iterator[Event]:
        for part in parts:
            if part.kind in ("thinking", "content"):
                yield Event("think_delta" if part.kind == "thinking" else "text_delta", part.text)
            elif part.kind == "thought":
                yield Event("think", part.text)
            elif part.kind == "outcomes" and may_call:
                # What was said before the first call is known to be no answer now
                prose = stream.reader.prose.text
                if prose and len(stream.reader.outcomes) == len(part.outcomes):
                    yield Event("text", prose)
                for outcome in part.outcomes:
                    if isinstance(outcome, ToolCall):
                        call = {"name": outcome.name, "arguments": outcome.arguments}
                        yield Event("tool_call", call)

    def _run(self, outcomes: Sequence[Outcome]) -> Generator[Event, None, tuple[ToolResult, ...]]:
        """Runs the calls in their order; returns a result for each, an error for a broken one."""
        results = []
        for number, outcome in enumerate(outcomes):
            result = self._result(number, outcome)
            # All results together get half of what is left; the other half is for the answer.
            most = max(0, (self.positions - len(self.ids)) // (2 * len(outcomes)))
            text = self._as_text(result, most)
            results.append(ToolResult(text, outcome.name))
            yield Event("tool_response", {"name": outcome.name, "content": text})
        return tuple(results)

    def _result(self, number: int, outcome: Outcome) -> Any:
        """What a call gives: the tool's own value, or why it was not run."""
        left = self.limits.tool_seconds - self.spent.tool_seconds
        if number >= MAX_CALLS:
            return TOO_MANY.as_result()
        if isinstance(outcome, CallError):
            return outcome.as_result()
        if self.spent.made[outcome.key] > MAX_REPEATS:
            return REPEATED.as_result()
        if self.toolbox is None:
            return NO_TOOLS.as_result()
        if left <= 0:
            return OUT_OF_TIME.as_result()
        # Before the clock starts: a person may take their time
        if not self.toolbox.approves(outcome.name, outcome.arguments):
            return DECLINED.as_result()
        start = time.monotonic()
        result = self.toolbox.call(outcome.name, outcome.arguments, left)
        self.spent.tool_seconds += time.monotonic() - start
        return result

    def _as_text(self, result: Any, most: int) -> str:
        """A result as text of at most MAX_RESULT_CHARACTERS and about `most` tokens."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        kept = cut_result(text)
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
            why = self.cut or "raise --max-new-tokens, or start anew with /new"
            yield Event("error", f"the reply was cut: {why}")
        elif not reply.content:
            did = "only made more calls" if reply.calls else "wrote nothing"
            yield Event("error", f"no answer: the model {did}")
