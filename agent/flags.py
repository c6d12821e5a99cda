"""The flags of `infer.py`."""

import argparse
import dataclasses
import math
import re
from pathlib import Path

from agent.constrain import check_library
from agent.guides import CallRule
from agent.limits import Limits
from agent.toolbox import CALL_SECONDS, MEMORY
from common.cli import Parser, float_in, int_at_least


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags, in groups; `Parser` adds the defaults that a help text does not name."""
    parser = Parser(
        description="Runs a Gemma-2 model with an adapter as an agent that calls tools."
    )

    # Four jobs of which a command names one at most; without one of them it is a chat.
    group = parser.add_argument_group("what to do; default: a chat on standard input")
    add = group.add_mutually_exclusive_group().add_argument
    add("--prompt", metavar="TEXT", help="ask one question")
    add("--evaluate", type=Path, metavar="FILE", help="exact-call accuracy on the rows of a file")
    merged = "write base and adapter as one plain model into a new folder"
    add("--merge", type=Path, metavar="DIR", help=merged)
    port = int_at_least(0, 65535)
    served = "OpenAI's chat API and a page, on this machine alone; default port: 8000; 0: any"
    add("--serve", type=port, nargs="?", const=8000, metavar="PORT", help=served)

    add = parser.add_argument_group("model").add_argument
    base = "folder or hub id of the base; default: what the adapter names, or the embedded one"
    add("--model", help=base)
    adapter = "folder that train.py wrote, or NAME=DIR; a server takes several; default: none"
    add("--adapter", action="append", type=named_folder, metavar="DIR", help=adapter)
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, bf16, fp16 or fp32")

    add = parser.add_argument_group("tools and output").add_argument
    seconds = float_in(0.1, 1e6)
    variable = "let the tools see this variable too; may be given again; default: none"
    memory = "limit of the tools' address space; 0 for none"
    question = "limit for all calls of a question"
    tools = "Python file whose public functions become tools; default: no tools"
    add("--tools", type=Path, metavar="FILE", help=tools)
    add("--tool-env", action="append", metavar="NAME", help=variable)
    add("--tool-memory", type=int_at_least(0), default=MEMORY, metavar="MIB", help=memory)
    add("--tool-seconds", type=seconds, default=CALL_SECONDS, help="limit for one call")
    limits, whole = Limits(), int_at_least(1)
    add("--question-seconds", type=seconds, default=limits.tool_seconds, help=question)
    add("--yes", action="store_true", help="run tools that ask first without asking")
    add("--out", type=Path, metavar="FILE", help="with --evaluate: a line of JSON for each reply")
    add("--json", action="store_true", help="an object of JSON per event; default: plain text")
    deltas = "with --json: also each piece of a text as it is written, and the end of a question"
    add("--deltas", action="store_true", help=deltas)

    parser_group = parser.add_argument_group("generation")
    add = parser_group.add_argument
    constrain = "write only calls that fit the schema of a tool on offer (needs llguidance)"
    call = "with --constrain: whether the first reply has to call, and which tool"
    free = "hold a call to nothing; default: tools and arguments have only the names on offer, and "
    free += "no required argument is left out"
    rules = parser_group.add_mutually_exclusive_group().add_argument
    rules("--free", action="store_true", help=free)
    rules("--constrain", action="store_true", help=constrain)
    add("--call", default="auto", metavar="auto|required|NAME", help=call)
    tokens, loop = limits.new_tokens, "end a reply whose last N tokens repeat themselves; 0: never"
    add("--max-new-tokens", type=whole, default=tokens, help="of one reply, at most")
    of_all = "of all replies to a question, at most; default: no limit"
    add("--question-tokens", type=whole, metavar="N", help=of_all)
    writing = "limit for writing all replies to a question; default: none"
    add("--reply-seconds", type=seconds, default=math.inf, help=writing)
    add("--rounds", type=whole, default=limits.rounds, help="replies with calls, at most")
    add("--loop", type=int_at_least(0), default=limits.loop, metavar="N", help=loop)
    add("--temperature", type=float_in(0), default=0.0, help="0 takes the most probable token")
    top_p = "sample from the smallest set of tokens with this probability"
    add("--top-p", type=float_in(0), default=1.0, help=top_p)
    add("--top-k", type=int_at_least(0), default=0, help="sample from so many tokens; 0: all")
    min_p = "sample from tokens with this share of the best one's probability"
    add("--min-p", type=float_in(0), default=0.0, help=min_p)
    add("--seed", type=int, default=0, help="of the sampling")
    args = parser.parse_args(argv)
    named = args.adapter or []
    args.adapters = dict(named)
    if len(args.adapters) < len(named):
        parser.error("--adapter: expected different names, got one twice; write NAME=DIR")
    if len(named) > 1 and args.serve is None:
        parser.error(f"--adapter: expected one without --serve, got {len(named)}; give one")
    args.adapter = named[0][1] if named else None
    return args


def named_folder(text: str) -> tuple[str, Path]:
    """A name and the folder behind it: NAME=DIR, or DIR, whose last part is the name."""
    name, sign, folder = text.partition("=")
    # A folder may have a "=" in its name, but not behind what could be the name of an adapter
    if not sign or not re.fullmatch(r"[\w.-]+", name):
        return Path(text).resolve().name, Path(text)
    return name, Path(folder)


def check_flags(args: argparse.Namespace) -> None:
    """Raises: ValueError for a flag that would do nothing beside the others."""
    if args.call != "auto" and not args.constrain:
        raise ValueError(f"--call {args.call} needs --constrain; give both, or neither")
    if args.tools and (args.merge is not None or args.evaluate is not None):
        raise ValueError("--tools does nothing beside --merge or --evaluate; leave it out")
    if args.evaluate is None and not args.tools:
        # The tools of a server come with each request
        names = ("yes",) if args.serve is not None else ("yes", "constrain")
        idle = [f"--{name}" for name in names if getattr(args, name)]
        if idle:
            raise ValueError(f"{idle[0]} needs --tools, whose calls it is about; leave it out")
    if args.serve is not None and (args.json or args.call != "auto"):
        given = "--json" if args.json else "--call"
        raise ValueError(
            f"{given} does nothing beside --serve, whose requests decide; leave it out"
        )
    # All but --max-new-tokens, which does something: it is a server's default for a reply
    given_limits = dataclasses.replace(limits_of(args), new_tokens=Limits().new_tokens)
    if args.serve is not None and given_limits != Limits():
        raise ValueError(
            "--rounds, --loop, --question-tokens, --question-seconds and --reply-seconds do "
            "nothing beside --serve; leave them out"
        )
    if args.deltas and not args.json:
        raise ValueError("--deltas needs --json, whose objects it adds to; give both, or neither")
    if args.out and args.evaluate is None:
        raise ValueError("--out needs --evaluate, the file whose replies it is to hold")
    if args.merge is not None and (args.free or args.constrain):
        given = "--free" if args.free else "--constrain"
        raise ValueError(f"{given} does nothing beside --merge, which writes no reply")
    if args.call != "auto" and args.evaluate is not None:
        raise ValueError("--call does nothing beside --evaluate, whose rows decide; leave it out")


def limits_of(args: argparse.Namespace) -> Limits:
    """What one question may take, by the flags."""
    return Limits(
        new_tokens=args.max_new_tokens,
        question_tokens=args.question_tokens,
        rounds=args.rounds,
        tool_seconds=args.question_seconds,
        reply_seconds=args.reply_seconds,
        loop=args.loop,
    )


def rule_of(args: argparse.Namespace) -> CallRule:
    """What a call may be, by the flags. Raises: ValueError without the library for one."""
    if args.constrain:
        # Here, or the library would be missed only after the model was loaded
        check_library()
        return CallRule("constrained", args.call)
    return CallRule("free" if args.free else "offered")
