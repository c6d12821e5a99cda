"""Runs a model and its adapter as an agent: it thinks, calls tools, reads the results, answers.

    python infer.py --adapter runs/NAME --tools embedded/shown/tools.py --prompt TEXT
    python infer.py --adapter runs/NAME --evaluate rows.jsonl
    python infer.py --adapter runs/NAME --merge merged/
    python infer.py --adapter NAME=runs/NAME --adapter OTHER=runs/OTHER --serve

Without one of these jobs it chats: /new forgets the conversation, /quit ends.
"""

import argparse
import contextlib
import errno
import json
import signal
import sys
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError

from agent.agent import Agent
from agent.evaluate import evaluate_file
from agent.flags import check_flags, limits_of, parse_args, rule_of
from agent.guides import CallRule
from agent.limits import Event
from agent.loading import load_model
from agent.merging import check_target, write_merged
from agent.screen import Screen, console, errors
from agent.toolbox import ToolBox
from common import cli
from common.cli import USER_ERRORS, printable
from common.device import seed_everything
from lora.adapter import read_config
from model.generate import Sampling

MAX_QUESTION = 1_000_000  # characters of a line: a stream without line ends would fill the memory


def run(args: argparse.Namespace) -> bool:
    """Does what the flags ask; False if a question got no answer.

    Raises: ValueError, OSError for wrong inputs.
    """
    seed_everything(args.seed)
    # A wrong sampling flag is refused here, before minutes are spent on loading a model.
    sampling = Sampling(args.temperature, args.top_p, args.seed, top_k=args.top_k, min_p=args.min_p)
    check_flags(args)
    rule = rule_of(args)
    if args.merge is not None:
        merge(args)
        return True
    if args.evaluate is not None:
        evaluate(args, rule)
        return True
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("--prompt: expected a question, got nothing; leave the flag out to chat")
    if args.prompt is None and args.serve is None and sys.stdin is None:  # as after `infer.py <&-`
        raise ValueError("standard input is closed, so nobody can ask; give --prompt TEXT")
    # The tools first: their file is checked in a second.
    with open_tools(args) as toolbox:
        if args.serve is not None:
            from serve.program import serve  # what it needs is an extra

            serve(args, toolbox, sampling, rule)
            return True
        loaded = load_model(args.model, args.adapter, device=args.device, dtype=args.dtype)
        agent = Agent(*loaded, toolbox, sampling=sampling, limits=limits_of(args), rule=rule)
        screen = Screen(args.json, args.deltas)
        if args.prompt is not None:
            return answer(agent, args.prompt, screen)
        chat(agent, screen)
    return True


def open_tools(args: argparse.Namespace) -> contextlib.AbstractContextManager[ToolBox | None]:
    """The tools, or nothing, whose context ends their process."""
    if not args.tools:
        return contextlib.nullcontext()
    limits = {"memory": args.tool_memory, "environment": args.tool_env or ()}
    return ToolBox(args.tools, args.tool_seconds, ask=may_run if not args.yes else yes, **limits)


def yes(name: str, arguments: dict[str, Any]) -> bool:
    """The answer of --yes to every tool that asks first."""
    return True


def may_run(name: str, arguments: dict[str, Any]) -> bool:
    """Asks the user whether a call that changes something may be run; no without a terminal."""
    call = f"{name}({json.dumps(arguments, ensure_ascii=False)})"
    if sys.stdin is None or not sys.stdin.isatty():
        errors.print(printable(f"infer.py: {call} asks first; give --yes to allow such calls"))
        return False
    errors.print(printable(f"run {call}? [y/N] "), style="bold yellow", end="")
    return read_line().strip().lower() in ("y", "yes")


def answer(agent: Agent, text: str, screen: Screen) -> bool:
    """Asks one question and shows what happens; True if there was an answer."""
    kinds = set()
    for event in agent.ask(text, stream=True):  # each is shown while the next one is to happen
        screen.show(event)
        kinds.add(event.kind)
    return "answer" in kinds


def read_line() -> str:
    """A line of standard input; "" at its end. Raises: ValueError if it cannot be read."""
    try:
        line = sys.stdin.readline(MAX_QUESTION + 1)
    except OSError as error:
        raise ValueError(f"standard input cannot be read: {error.strerror}; use --prompt") from None
    if len(line) > MAX_QUESTION:
        raise ValueError(f"standard input: a line of over {MAX_QUESTION} characters; shorten it")
    return line


def chat(agent: Agent, screen: Screen) -> None:
    """Reads questions from standard input until it ends or a line is /quit."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            errors.print("you: ", style="bold blue", end="")
        line = read_line()
        text = line.strip()
        if not line or text == "/quit":  # the end of the input is "", an empty line "\n"
            return
        if text == "/new":
            agent.forget()
        elif text:
            try:
                answer(agent, text, screen)
            except ValueError as error:  # this question cannot be asked; the next one may be
                screen.show(Event("error", str(error)))


def evaluate(args: argparse.Namespace, rule: CallRule) -> None:
    """Prints the accuracy on every reply of a file's rows as JSON; --out gets a line for each."""
    load = partial(load_model, args.model, args.adapter, device=args.device, dtype=args.dtype)
    line, dropped = evaluate_file(args.evaluate, load, args.max_new_tokens, args.out, rule=rule)
    if dropped:
        errors.print(f"rows that cannot be read:\n{dropped}", soft_wrap=True)
    print(json.dumps(line))


def merge(args: argparse.Namespace) -> None:
    """Writes base and adapter as one plain model; says how well the merge went."""
    if not args.adapter:
        raise ValueError("--merge needs --adapter: there is nothing to merge into the base")
    check_target(args.merge)  # refused before a model is loaded
    # Merging adds in float32 and rounds once, to the base's own dtype. What is fastest here
    # says nothing about the programs that will read the folder.
    dtype = None if args.dtype == "auto" else args.dtype
    loaded = load_model(args.model, args.adapter, device=args.device, dtype=dtype)
    base = args.model or read_config(args.adapter).base_model
    report = write_merged(*loaded, args.merge, base)
    for sentence in report.warnings:
        errors.print(printable(f"infer.py: warning: {sentence}"), style="yellow", soft_wrap=True)
    for sentence in report.facts:
        console.print(printable(sentence), soft_wrap=True)


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[list[int]]:
    """Collects the Ctrl-C signals of the block in a list.

    Each of them raises KeyboardInterrupt as well; but Python drops one that is raised inside a
    destructor or a callback, and the program would end as if nothing had happened.
    """
    seen: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen  # ignored, as in a shell's background job, or another program's handler
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 no answer or no memory, 2 wrong input, 130 interrupted."""
    cli.tolerate_encodings()
    try:
        with remembered_interrupts() as interrupts:
            done = run(parse_args(argv))
        if interrupts:
            return 130  # 128 + 2, SIGINT's number: what a shell reports for an interrupted program
        return 0 if done else 1
    except USER_ERRORS as error:
        print(printable(f"infer.py: {error}"), file=sys.stderr)
        return 2
    except (OSError, SafetensorError, torch.OutOfMemoryError) as error:
        print(printable(f"infer.py: {error}"), file=sys.stderr)
        return 2 if getattr(error, "errno", None) == errno.ENAMETOOLONG else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
