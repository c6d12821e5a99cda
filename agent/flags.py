"""The flags of `infer.py`."""

import argparse
from pathlib import Path

from agent.agent import QUESTION_SECONDS
from agent.toolbox import CALL_SECONDS, MEMORY
from common.cli import Parser, float_in, int_at_least


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags, in groups; `Parser` adds the defaults that a help text does not name."""
    parser = Parser(
        description="Runs a Gemma-2 model with an adapter as an agent that calls tools."
    )

    # Three jobs of which a command names one at most; without one of them it is a chat.
    group = parser.add_argument_group("what to do; default: a chat on standard input")
    add = group.add_mutually_exclusive_group().add_argument
    add("--prompt", metavar="TEXT", help="ask one question")
    add("--evaluate", type=Path, metavar="FILE", help="exact-call accuracy on the rows of a file")
    merged = "write base and adapter as one plain model into a new folder"
    add("--merge", type=Path, metavar="DIR", help=merged)

    add = parser.add_argument_group("model").add_argument
    base = "folder or hub id of the base; default: what the adapter names, or the embedded one"
    add("--model", help=base)
    add("--adapter", type=Path, help="folder that train.py wrote; default: the base alone")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, bf16, fp16 or fp32")

    add = parser.add_argument_group("tools and output").add_argument
    seconds = float_in(0.1, 1e6)
    variable = "let the tools see this variable too; may be given again; default: none"
    memory = "limit of the tools' address space; 0 for none"
    tools = "Python file whose public functions become tools; default: no tools"
    add("--tools", type=Path, metavar="FILE", help=tools)
    add("--tool-env", action="append", metavar="NAME", help=variable)
    add("--tool-memory", type=int_at_least(0), default=MEMORY, metavar="MIB", help=memory)
    add("--tool-seconds", type=seconds, default=CALL_SECONDS, help="limit for one call")
    add("--question-seconds", type=seconds, default=QUESTION_SECONDS, help="limit for a question")
    add("--out", type=Path, metavar="FILE", help="with --evaluate: a line of JSON for each reply")
    add("--json", action="store_true", help="an object of JSON per event; default: plain text")

    add = parser.add_argument_group("generation").add_argument
    free = "let a call have any name; default: tools and arguments have only the names on offer"
    add("--free", action="store_true", help=free)
    add("--max-new-tokens", type=int_at_least(1), default=512, help="of one reply, at most")
    add("--temperature", type=float_in(0), default=0.0, help="0 takes the most probable token")
    top_p = "sample from the smallest set of tokens with this probability"
    add("--top-p", type=float_in(0), default=1.0, help=top_p)
    add("--seed", type=int, default=0, help="of the sampling")
    return parser.parse_args(argv)
