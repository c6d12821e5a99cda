"""Runs a base model and its adapter as an agent: render the chat, generate, call tools, go on until there is an answer.

    python infer.py --adapter runs/NAME --tools FILE.py --prompt "..."

Without --prompt it chats. `--evaluate FILE` scores held-out rows, `--merge DIR` writes a plain model for other programs.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data.calls import Outcome
from data.chat import Reply, parse_reply, render_prompt
from data.dataset import load_conversations
from data.flags import real, whole
from data.functions import ToolBox, call_error
from data.messages import Conversation, Message, ToolCall, ToolResult
from data.schema import conversation_from
from data.score import Accuracy, is_exact, kind_of
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
MAX_CALLS = 8  # calls that one reply may make
MAX_RESULT_CHARACTERS = 8000
EVAL_BATCH = 32
# The tags that a model itself writes, in either format; the others are the chat's.
WRITTEN_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]")
NO_TOOLS = call_error("unknown_tool", "there are no tools in this chat", "answer without a call")

console = Console(highlight=False)


@dataclass(frozen=True)
class Event:
    """One thing that happened: kind is think, tool_call, tool_response, answer or error; content is JSON."""

    kind: str
    content: Any


def model_folder(name: str | Path | None) -> Path:
    """The folder of a base model: the embedded one for None or "embedded", a folder, or a downloaded hub repository."""
    return EMBEDDED_MODEL if name in (None, "", EMBEDDED) else resolve_folder(str(name))


def load_base(folder: Path, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Gemma2:
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
    tags = sorted(tokenizer.tag_ids, key=lambda tag: tokenizer.tag_ids[tag])
    resize_embedding(model, new_rows(model, [tokenizer.sub_tokens(tag) for tag in tags], seed))
    return model


def load_agent(args: argparse.Namespace) -> tuple[Gemma2, Tokenizer]:
    """Base, adapter and the tokenizer that was saved with it."""
    device = pick_device(args.device)
    base = args.model or (read_config(args.adapter).base_model if args.adapter else None)
    folder = model_folder(base)
    tokenizer = Tokenizer.from_pretrained(args.adapter or folder)
    precision = pick_precision(args.dtype, device, Gemma2Config.from_json(folder).num_parameters)
    model = load_base(folder, tokenizer, device, precision.dtype)
    if args.adapter:
        load_adapter(model, args.adapter)
    return model.eval(), tokenizer


def evaluate_calls(
    model: Gemma2,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    seen_tools: set[str],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Exact-call accuracy of the first reply to each conversation, greedy; see `data.score`.

    A prompt that leaves no room for the reply counts as wrong.
    """
    accuracy = Accuracy()
    prompts = [render_prompt(first_question(conversation), tokenizer) for conversation in conversations]
    room = model.config.max_position_embeddings - max_new_tokens
    # Rows of like length share a batch: less padding.
    order = sorted((i for i in range(len(prompts)) if len(prompts[i]) <= room), key=lambda i: len(prompts[i]))
    replies: dict[int, list[int]] = {}
    for start in range(0, len(order), EVAL_BATCH):
        rows = order[start : start + EVAL_BATCH]
        made = generate(model, [prompts[i] for i in rows], max_new_tokens, tokenizer.stop_ids)
        replies |= dict(zip(rows, made, strict=True))
    for i, conversation in enumerate(conversations):
        expected = first_reply(conversation).calls
        reply = parse_reply(replies.get(i, []), tokenizer, conversation.tools)
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


class Agent:
    """One chat with a model and, optionally, tools. `ask` yields what happens until the model has answered."""

    def __init__(self, model: Gemma2, tokenizer: Tokenizer, toolbox: ToolBox | None, args: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.toolbox = model, tokenizer, toolbox
        self.max_new_tokens = args.max_new_tokens
        # Ids that only the chat itself may place: a model that writes its own tool result would believe it.
        allowed = {tokenizer.tag_ids[t] for t in tokenizer.tag_ids if t in WRITTEN_TAGS} | set(tokenizer.stop_ids)
        forbidden = tuple(sorted(tokenizer.control_ids - allowed))
        self.sampling = Sampling(args.temperature, args.top_p, args.seed, forbidden)
        self.messages: list[Message] = []

    def ask(self, text: str) -> Iterator[Event]:
        """Events of one question: thoughts, calls, their results, the answer."""
        self.messages.append(Message("user", text))
        for _ in range(MAX_ROUNDS):
            reply = self._reply()
            if reply.thinking:
                yield Event("think", reply.thinking)
            self.messages.append(Message("model", reply.content, reply.thinking, reply.calls))
            if not reply.outcomes:
                yield (
                    Event("answer", reply.content) if reply.content else Event("error", "the model gave an empty reply")
                )
                return
            results = []
            for outcome in reply.outcomes[:MAX_CALLS]:
                result = yield from self._run(outcome)
                results.append(result)
            self.messages.append(Message("tool", results=tuple(results)))
        yield Event("error", f"no answer after {MAX_ROUNDS} rounds of calls")

    def _reply(self) -> Reply:
        tools = self.toolbox.tools if self.toolbox else []
        prompt = render_prompt(conversation_from(tools, self.messages, self.tokenizer.prompt), self.tokenizer)
        room = self.model.config.max_position_embeddings - len(prompt)
        if room < 1:
            raise ValueError(f"the conversation has grown to {len(prompt)} tokens, more than the model's "
                             f"{self.model.config.max_position_embeddings} positions; start a new chat")  # fmt: skip
        new = generate(self.model, [prompt], min(room, self.max_new_tokens), self.tokenizer.stop_ids, self.sampling)[0]
        return parse_reply(new, self.tokenizer, tools)

    def _run(self, outcome: Outcome) -> Generator[Event, None, ToolResult]:
        """Calls one tool, or tells the model what is wrong with its call."""
        if isinstance(outcome, ToolCall):
            yield Event("tool_call", {"name": outcome.name, "arguments": outcome.arguments})
            result = self.toolbox.call(outcome.name, outcome.arguments) if self.toolbox else NO_TOOLS
        else:
            yield Event("error", f"{outcome.code}: {outcome.message}")
            result = call_error(outcome.code, outcome.message, outcome.hint)
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        if len(text) > MAX_RESULT_CHARACTERS:
            text = text[:MAX_RESULT_CHARACTERS] + f" ... [cut: {len(text)} characters]"
        yield Event("tool_response", {"name": outcome.name, "content": text})
        return ToolResult(text, outcome.name)


def show(event: Event, as_json: bool) -> None:
    """Prints an event: one JSON object per line, or text for people."""
    if as_json:
        print(json.dumps({"type": event.kind, "content": event.content}, ensure_ascii=False), flush=True)
        return
    style = {"think": "dim italic", "tool_call": "cyan", "tool_response": "green", "error": "red"}.get(
        event.kind, "bold"
    )
    content = event.content if isinstance(event.content, str) else json.dumps(event.content, ensure_ascii=False)
    label = "" if event.kind == "answer" else f"{event.kind}: "
    console.print(label + content, style=style, markup=False, soft_wrap=True)


def chat(agent: Agent, as_json: bool) -> None:
    """Reads questions from standard input until it ends or says /quit; /new forgets the conversation."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            console.print("you: ", style="bold blue", end="")
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text == "/quit":
            return
        if text == "/new":
            agent.messages.clear()
        elif text:
            for event in agent.ask(text):
                show(event, as_json)


def evaluate_file(model: Gemma2, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Prints the accuracy on the rows of a file as JSON; no tool counts as seen, since the training rows are not known."""
    conversations, report = load_conversations(args.evaluate)
    result = evaluate_calls(model, tokenizer, conversations, set(), args.max_new_tokens)
    print(json.dumps({"file": str(args.evaluate), "rows_dropped": len(report.dropped), "tool_call_accuracy": result}))


def merge(model: Gemma2, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Writes the merged model and its tokenizer as Transformers, vLLM and llama.cpp load them."""
    if not args.adapter:
        raise ValueError("--merge needs --adapter: there is nothing to merge into the base")
    if args.merge.exists() and any(args.merge.iterdir()):
        raise ValueError(f"--merge {args.merge}: not empty; give a new folder")
    save_gemma2(merge_adapter(model), args.merge)
    tokenizer.save(args.merge)
    console.print(f"merged model written to {args.merge}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs a Gemma-2 model with a function-calling adapter.")
    add = parser.add_argument
    add("--model", help="folder or hub id of the base; default: the one that the adapter names, or the embedded one")
    add("--adapter", type=Path, help="folder that train.py wrote")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, bf16, fp16 or fp32")
    add("--prompt", help="one question; without it, a chat on standard input")
    add("--tools", type=Path, help="Python file whose public functions become tools")
    add("--json", action="store_true", help="one JSON object per event on stdout")
    add("--max-new-tokens", type=whole(1), default=512, help="at most so many tokens per reply")
    add("--temperature", type=real(0), default=0.0, help="0 takes the most probable token")
    add(
        "--top-p",
        type=real(0, 1.000001),
        default=1.0,
        help="sample from the smallest set of tokens that holds this probability",
    )
    add("--seed", type=int, default=0, help="of the sampling")
    add("--merge", type=Path, metavar="DIR", help="write base and adapter as one plain model")
    add("--evaluate", type=Path, metavar="FILE", help="exact-call accuracy on the rows of a file")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Does what the flags ask. Raises: ValueError, FileNotFoundError for wrong inputs."""
    seed_everything(args.seed)
    Sampling(args.temperature, args.top_p)  # refused before a model is loaded
    model, tokenizer = load_agent(args)
    if args.merge:
        merge(model, tokenizer, args)
    elif args.evaluate:
        evaluate_file(model, tokenizer, args)
    elif args.tools:
        with ToolBox(args.tools) as toolbox:
            talk(Agent(model, tokenizer, toolbox, args), args)
    else:
        talk(Agent(model, tokenizer, None, args), args)


def talk(agent: Agent, args: argparse.Namespace) -> None:
    """One question, or a chat."""
    if args.prompt is None:
        return chat(agent, args.json)
    for event in agent.ask(args.prompt):
        show(event, args.json)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input, 130 interrupted."""
    try:
        run(parse_args(argv))
    except (ValueError, FileNotFoundError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
