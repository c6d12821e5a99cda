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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from safetensors import SafetensorError

from agent.agent import Agent, Event
from agent.evaluate import first_replies, score_calls
from agent.loading import load_agent
from agent.toolbox import ToolBox
from common.cli import USER_ERRORS, Parser, float_in, int_at_least
from common.device import seed_everything
from data.dataset import load_conversations
from lora.adapter import merge_adapter
from model.generate import Sampling
from model.loader import save_gemma2

# What could move a terminal's cursor or change its state; line ends and tabs may stay.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

console = Console(highlight=False, markup=False, emoji=False)
errors = Console(highlight=False, markup=False, emoji=False, stderr=True)


def show(event: Event, as_json: bool) -> None:
    """Prints an event: one JSON object per line, or text for people. Errors go to standard error."""
    if event.kind == "error":
        return errors.print(f"infer.py: {event.content}", style="red", soft_wrap=True)
    if as_json:
        return print(
            json.dumps({"type": event.kind, "content": event.content}, ensure_ascii=False),
            flush=True,
        )
    style = {"think": "dim italic", "tool_call": "cyan", "tool_response": "green"}.get(
        event.kind, "bold"
    )
    content = (
        event.content
        if isinstance(event.content, str)
        else json.dumps(event.content, ensure_ascii=False)
    )
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
    print(
        json.dumps(
            {
                "file": str(args.evaluate),
                "rows_dropped": len(report.dropped),
                "tool_call_accuracy": result,
            }
        )
    )


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
    add(
        "--model",
        help="folder or hub id of the base; default: the one that the adapter names, or the embedded one",
    )
    add("--adapter", type=Path, help="folder that train.py wrote")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, bf16, fp16 or fp32")
    add("--tools", type=Path, help="Python file whose public functions become tools")
    add("--json", action="store_true", help="one JSON object per event on stdout")
    add(
        "--max-new-tokens",
        type=int_at_least(1),
        default=512,
        help="at most so many tokens per reply",
    )
    add("--temperature", type=float_in(0), default=0.0, help="0 takes the most probable token")
    add(
        "--top-p",
        type=float_in(0),
        default=1.0,
        help="sample from the smallest set of tokens that holds this probability",
    )
    add("--seed", type=int, default=0, help="of the sampling")
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--prompt", help="one question; without it, a chat on standard input")
    job.add_argument(
        "--merge", type=Path, metavar="DIR", help="write base and adapter as one plain model"
    )
    job.add_argument(
        "--evaluate", type=Path, metavar="FILE", help="exact-call accuracy on the rows of a file"
    )
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
            stream.reconfigure(
                errors="replace"
            )  # what a terminal cannot show must not end the program
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
