"""Runs a base model and its adapter as an agent: render the chat, generate, call tools, go on until there is an answer.

    python infer.py --adapter runs/NAME --tools FILE.py --prompt "..."

Without --prompt it chats. `--evaluate FILE` scores held-out rows, `--merge DIR` writes a plain model for other programs.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from data.calls import Outcome
from data.chat import Reply, parse_reply, render, render_prompt
from data.dataset import load_conversations
from data.flags import USER_ERRORS, Parser, real, whole
from data.functions import ToolBox, call_error
from data.messages import Conversation, Message, ToolCall, ToolResult
from data.schema import conversation_from
from data.score import Accuracy, call_key, is_exact, kind_of
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter, merge_adapter, read_config
from model.config import Gemma2Config
from model.embedding import new_rows, resize_embedding
from model.generate import Sampling, generate
from model.loader import load_gemma2, resolve_folder, save_gemma2
from model.runtime import pick_device, pick_precision, seed_everything
from model.transformer import Gemma2

EMBEDDED = "embedded"  # the name of the shipped base in adapter_config.json
EMBEDDED_MODEL = Path(__file__).parent / "model" / "default"
MAX_ROUNDS = 8  # replies with calls before the loop gives up on an answer
MAX_CALLS = 8  # calls of one reply that are run
MAX_REPEATS = 3  # replies to one question whose same call is run; after that the model has to answer
MAX_RESULT_CHARACTERS = 8000
# Rows of an evaluation's batch, and entries of its cache, each 106 kB for Gemma-2-2B in 16 bits.
EVAL_BATCH, EVAL_ENTRIES = 64, 60_000
# The tags that a model itself writes, in either format; the others are the chat's.
THINK_TAGS, CALL_TAGS = ("<think>", "</think>"), ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
NO_TOOLS = call_error("unknown_tool", "there are no tools in this chat", "answer without a call")
TOO_MANY = call_error("too_many_calls", f"at most {MAX_CALLS} calls at once are run", "make fewer calls at once")
REPEATED = call_error("repeated_call", "this call was made before; its result stands above", "answer with that result")
# What could move a terminal's cursor or change its state; line ends and tabs may stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

console = Console(highlight=False, markup=False, emoji=False)
errors = Console(highlight=False, markup=False, emoji=False, stderr=True)


@dataclass(frozen=True)
class Event:
    """One thing that happened: kind is think, tool_call, tool_response, answer or error; content is JSON."""

    kind: str
    content: Any


def model_folder(name: str | Path | None) -> Path:
    """The folder of a base model: the embedded one for None or "embedded", a folder, or a downloaded hub repository."""
    return EMBEDDED_MODEL if name in (None, "", EMBEDDED) else resolve_folder(str(name))


def load_base(
    folder: Path, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype | None, seed: int = 0
) -> Gemma2:
    """The base with a row for each tag of the tokenizer. Raises: ValueError if vocabulary and tokenizer do not fit."""
    model = load_gemma2(folder, device, dtype)
    size = model.config.vocab_size
    if size == len(tokenizer):
        return model
    if size != tokenizer.base_size:
        raise ValueError(
            f"{folder}: the model has {size} rows, but its tokenizer {tokenizer.base_size} entries without the tags and "
            f"{len(tokenizer)} with them; give the tokenizer that belongs to the model"
        )
    new = [tag for tag in tokenizer.tag_ids if tokenizer.tag_ids[tag] >= size]  # a base may know some of them
    tags = sorted(new, key=lambda tag: tokenizer.tag_ids[tag])
    resize_embedding(model, new_rows(model, [tokenizer.sub_tokens(tag) for tag in tags], seed))
    return model


def load_agent(args: argparse.Namespace) -> tuple[Gemma2, Tokenizer]:
    """Base, adapter and the tokenizer that was saved with it."""
    device = pick_device(args.device)
    base = args.model or (read_config(args.adapter).base_model if args.adapter else None)
    folder = model_folder(base)
    # An adapter that PEFT wrote may come without its tokenizer; then the base's is the one.
    has_own = args.adapter and (args.adapter / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_pretrained(args.adapter if has_own else folder)
    precision = pick_precision(args.dtype, device, Gemma2Config.from_json(folder).num_parameters)
    # A merged folder keeps the base's own dtype, whatever would be fastest here.
    model = load_base(folder, tokenizer, device, None if args.merge and args.dtype == "auto" else precision.dtype)
    if args.adapter:
        load_adapter(model, args.adapter)
    return model.eval(), tokenizer


def first_replies(
    model: Gemma2, tokenizer: Tokenizer, conversations: Sequence[Conversation], max_new_tokens: int
) -> list[list[int]]:
    """What the model writes, greedy, where the first reply of each conversation stands: ids.

    A prompt that fills the model's positions gets an empty one.
    """
    prompts = [render_prompt(first_question(conversation), tokenizer) for conversation in conversations]
    limit = model.config.max_position_embeddings
    replies: list[list[int]] = [[] for _ in prompts]
    for rows in _alike([len(prompt) for prompt in prompts], limit, max_new_tokens):
        batch = [prompts[i] for i in rows]
        room = min(max_new_tokens, limit - len(batch[-1]))
        for i, reply in zip(rows, generate(model, batch, room, tokenizer.stop_ids), strict=True):
            replies[i] = reply
    return replies


def _alike(lengths: Sequence[int], limit: int, max_new_tokens: int) -> Iterator[list[int]]:
    """Batches of the rows shorter than `limit`, shortest first: rows of like length need little padding."""
    batch: list[int] = []
    for i in sorted((i for i in range(len(lengths)) if lengths[i] < limit), key=lambda i: lengths[i]):
        entries = (len(batch) + 1) * (lengths[i] + max_new_tokens)
        if batch and (len(batch) == EVAL_BATCH or entries > EVAL_ENTRIES):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_calls(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    replies: Sequence[Sequence[int]],
    seen_tools: set[str],
) -> dict[str, Any]:
    """Exact-call accuracy of such replies; see `data.score`. An empty one is wrong."""
    accuracy = Accuracy()
    for conversation, ids in zip(conversations, replies, strict=True):
        expected = first_reply(conversation).calls
        reply = parse_reply(list(ids), tokenizer, conversation.tools)
        # A reply that was cut or is empty is no answer, so garbage does not pass where no call is due.
        is_answer = bool(reply.calls or (reply.ended and reply.content))
        is_right = is_answer and not reply.errors and is_exact(expected, reply.calls)
        accuracy.add(kind_of(expected, seen_tools), is_right)
    return accuracy.as_dict()


def first_reply(conversation: Conversation) -> Message:
    """The first turn of the model. Raises: StopIteration without one; `parse_row` refuses such rows."""
    return next(message for message in conversation.messages if message.role == "model")


def first_question(conversation: Conversation) -> Conversation:
    """The conversation up to the model's first turn."""
    end = conversation.messages.index(first_reply(conversation))
    return dataclasses.replace(conversation, messages=conversation.messages[:end])


def reply_length(conversation: Conversation, tokenizer: Tokenizer) -> int:
    """Tokens of the first reply as the row has it, its end included."""
    question = first_question(conversation)
    both = dataclasses.replace(conversation, messages=conversation.messages[: len(question.messages) + 1])
    return len(render(both, tokenizer).tokens) - len(render_prompt(question, tokenizer)) - 1  # without the newline


class Agent:
    """One chat with a model and, optionally, tools. `ask` yields what happens until the model has answered.

    The chat is kept as ids: what the model wrote goes on standing exactly as it wrote it, broken calls too.
    """

    def __init__(self, model: Gemma2, tokenizer: Tokenizer, toolbox: ToolBox | None, args: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.toolbox = model, tokenizer, toolbox
        self.max_new_tokens = args.max_new_tokens
        self.sampling = Sampling(args.temperature, args.top_p, args.seed)
        self.ids: list[int] = []
        self.num_answered = 0  # ids up to the last answer; what comes after belongs to a question without one
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
            raise ValueError(f"the question makes a conversation of {len(self.ids)} tokens, but the model has "
                             f"{self.limit} positions; shorten it, or start anew with /new")  # fmt: skip
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
        yield Event("error", f"the calls' results filled the model's {self.limit} positions; ask for less at once")

    def _finish(self, reply: Reply) -> Iterator[Event]:
        """The answer, or why there is none."""
        # A cut reply may hold no more than spaces.
        is_blank_start = not (reply.ended or reply.thinking or reply.outcomes)
        if reply.content or is_blank_start:
            self.num_answered = len(self.ids)
            yield Event("answer", reply.content)
        if not reply.ended:
            yield Event("error", "the reply was cut; raise --max-new-tokens, or start anew with /new")
        elif not reply.content:
            yield Event("error", "no answer: the model " + ("only made more calls" if reply.calls else "wrote nothing"))

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
        turn = conversation_from(tools, [message], self.tokenizer.prompt) if is_first else Conversation((message,))
        self.ids += render_prompt(turn, self.tokenizer)[0 if is_first else 1 :]  # <bos> stands once

    def _reply(self, may_call: bool) -> Reply:
        """The model's next turn, appended to the chat."""
        tokenizer = self.tokenizer
        tags = (*THINK_TAGS, *CALL_TAGS) if may_call else THINK_TAGS
        # Ids that only the chat itself may place: a model that writes its own tool result would believe it.
        allowed = {tokenizer.tag_ids[tag] for tag in tags if tag in tokenizer.tag_ids} | set(tokenizer.stop_ids)
        forbidden = tuple(sorted(tokenizer.control_ids - allowed))
        seed = self.sampling.seed + self.num_replies  # else every reply would draw the same numbers
        sampling = dataclasses.replace(self.sampling, seed=seed, forbidden=forbidden)
        new = generate(self.model, [self.ids], min(self.room, self.max_new_tokens), tokenizer.stop_ids, sampling)[0]
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
        kept = text[:MAX_RESULT_CHARACTERS].encode(errors="replace").decode()  # half a surrogate pair is no character
        ids = self.tokenizer.encode(kept)
        kept = kept if len(ids) <= most else self.tokenizer.decode(ids[:most])
        return kept if len(kept) == len(text) else f"{kept} ... [cut: {len(text)} characters]"


def show(event: Event, as_json: bool) -> None:
    """Prints an event: one JSON object per line, or text for people. Errors go to standard error."""
    if event.kind == "error":
        return errors.print(f"infer.py: {event.content}", style="red", soft_wrap=True)
    if as_json:
        return print(json.dumps({"type": event.kind, "content": event.content}, ensure_ascii=False), flush=True)
    style = {"think": "dim italic", "tool_call": "cyan", "tool_response": "green"}.get(event.kind, "bold")
    content = event.content if isinstance(event.content, str) else json.dumps(event.content, ensure_ascii=False)
    label = "" if event.kind == "answer" else f"{event.kind}: "
    console.print(label + CONTROL.sub("\ufffd", content), style=style, soft_wrap=True)


def answer(agent: Agent, text: str, as_json: bool) -> bool:
    """Asks and shows what happens; True if there was an answer."""
    kinds = set()
    for event in agent.ask(text):
        show(event, as_json)
        kinds.add(event.kind)
    return "answer" in kinds


def chat(agent: Agent, as_json: bool) -> None:
    """Reads questions from standard input until it ends or says /quit; /new forgets the conversation."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            errors.print("you: ", style="bold blue", end="")
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text == "/quit":
            return
        if text == "/new":
            agent.forget()
        elif text:
            try:
                answer(agent, text, as_json)
            except ValueError as error:  # this question cannot be asked; the next one may be
                show(Event("error", str(error)), as_json)


def evaluate_file(args: argparse.Namespace) -> None:
    """Prints the accuracy on the rows of a file as JSON; no tool counts as seen, since the training rows are not known."""
    conversations, report = load_conversations(args.evaluate)  # refused before a model is loaded
    model, tokenizer = load_agent(args)
    limit = model.config.max_position_embeddings
    if args.max_new_tokens >= limit:
        raise ValueError(
            f"--max-new-tokens {args.max_new_tokens}: the model has {limit} positions for prompt and reply"
        )
    replies = first_replies(model, tokenizer, conversations, args.max_new_tokens)
    result = score_calls(tokenizer, conversations, replies, set())
    print(json.dumps({"file": str(args.evaluate), "rows_dropped": len(report.dropped), "tool_call_accuracy": result}))


def merge(args: argparse.Namespace) -> None:
    """Writes the merged model and its tokenizer as Transformers, vLLM and llama.cpp load them."""
    if not args.adapter:
        raise ValueError("--merge needs --adapter: there is nothing to merge into the base")
    if args.merge.exists() and (not args.merge.is_dir() or any(args.merge.iterdir())):
        raise ValueError(f"--merge {args.merge}: not an empty folder; give a new one")
    model, tokenizer = load_agent(args)
    model = merge_adapter(model)
    # The base's own config may lack the end of a turn, and a program that reads only it would never stop.
    model.replace_config(dataclasses.replace(model.config, eos_token_id=tokenizer.stop_ids))
    save_gemma2(model, args.merge)
    tokenizer.save(args.merge)
    console.print(f"merged model written to {args.merge}", soft_wrap=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description="Runs a Gemma-2 model with a function-calling adapter.")
    add = parser.add_argument
    add("--model", help="folder or hub id of the base; default: the one that the adapter names, or the embedded one")
    add("--adapter", type=Path, help="folder that train.py wrote")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, bf16, fp16 or fp32")
    add("--tools", type=Path, help="Python file whose public functions become tools")
    add("--json", action="store_true", help="one JSON object per event on stdout")
    add("--max-new-tokens", type=whole(1), default=512, help="at most so many tokens per reply")
    add("--temperature", type=real(0), default=0.0, help="0 takes the most probable token")
    add("--top-p", type=real(0), default=1.0, help="sample from the smallest set of tokens that holds this probability")
    add("--seed", type=int, default=0, help="of the sampling")
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--prompt", help="one question; without it, a chat on standard input")
    job.add_argument("--merge", type=Path, metavar="DIR", help="write base and adapter as one plain model")
    job.add_argument("--evaluate", type=Path, metavar="FILE", help="exact-call accuracy on the rows of a file")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> bool:
    """Does what the flags ask; False if a question got no answer. Raises: ValueError, OSError for wrong inputs."""
    seed_everything(args.seed)
    Sampling(args.temperature, args.top_p)  # refused before a model is loaded
    if args.merge:
        merge(args)
    elif args.evaluate:
        evaluate_file(args)
    else:
        return talk(args)
    return True


def talk(args: argparse.Namespace) -> bool:
    """One question, or a chat; False if the question got no answer."""
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("--prompt: expected a question, got nothing; leave the flag out to chat")
    with ToolBox(args.tools) if args.tools else contextlib.nullcontext() as toolbox:
        agent = Agent(*load_agent(args), toolbox, args)
        if args.prompt is not None:
            return answer(agent, args.prompt, args.json)
        chat(agent, args.json)
    return True


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[list[int]]:
    """The Ctrl-C signals so far: Python drops the KeyboardInterrupt of one that falls into a destructor or a callback."""
    seen: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen  # ignored, or somebody else's
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input, 1 anything else, such as no answer, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show must not end the program
    try:
        with remembered_interrupts() as interrupts:
            done = run(parse_args(argv))
        return 130 if interrupts else 0 if done else 1
    except USER_ERRORS as error:
        print(f"infer.py: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError, torch.OutOfMemoryError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
