"""Valid calls under --constrain with a model that knows nothing: random weights, sampled.

    python -m benchmarks.constrained_calls ROWS.jsonl [--rows 1000]

The rows give the tools, such as the Berkeley leaderboard's. Every reply is forced to call, with
room for little more than the shortest call that fits, or for a longer one: a call is valid if it is
read without an error and fits its tool's schema. Prints one line of JSON.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from agent.guides import CallRule, guide_for
from agent.loading import EMBEDDED_MODEL
from benchmarks.tiny_base import tiny_config
from data.call_check import check_arguments
from data.conversation import Conversation, Tool
from data.dataset import load_conversations
from data.reply import parse_reply
from data.tokenizer import Tokenizer
from model.generate import Sampling, generate
from model.transformer import Gemma2

BATCH = 16


def random_model(tokenizer: Tokenizer, seed: int = 0) -> Gemma2:
    """Two narrow layers for the tokenizer's vocabulary, as they are initialised."""
    torch.manual_seed(seed)
    return Gemma2(tiny_config(len(tokenizer))).eval()


def problems_of(ids: list[int], tokenizer: Tokenizer, tools: tuple[Tool, ...]) -> list[str]:
    """What is wrong with the calls of a reply; a reply without any is wrong too."""
    reply = parse_reply(ids, tokenizer, tools)
    found = [f"{error.code}: {error.message}" for error in reply.errors]
    parameters = {tool.name: tool.parameters for tool in tools}
    for call in reply.calls:
        if call.name not in parameters:
            found.append(f"no tool {call.name}")
        else:
            found += check_arguments(parameters[call.name], call.arguments)
    return found if reply.calls or found else ["no call"]


def measure(
    rows: list[Conversation], tokenizer: Tokenizer, *, temperature: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Counts of replies, of valid ones and of those that filled their room; the first problems."""
    model, drawn = random_model(tokenizer, seed), random.Random(seed)
    counts: dict[str, Any] = {"replies": 0, "valid": 0, "full": 0, "ids": 0, "problems": []}
    rule, prompt = CallRule("constrained", "required"), [tokenizer.bos_id]
    start = time.monotonic()
    for first in range(0, len(rows), BATCH):
        tools = [row.tools for row in rows[first : first + BATCH]]
        free = [guide_for(tokenizer, each, CallRule("constrained"), room=5000) for each in tools]
        least = max(len(guide.grammar.start_plan) + 1 for guide in free)  # type: ignore[union-attr]
        room = least + drawn.choice([0, 1, 5, 20, 100])
        guides = [guide_for(tokenizer, each, rule, room=room) for each in tools]
        sampling = Sampling(temperature, seed=seed + first)
        prompts = [[*prompt, drawn.randrange(len(tokenizer))] for _ in tools]
        replies = generate(model, prompts, room, tokenizer.stop_ids, sampling, guides)
        for each, ids in zip(tools, replies, strict=True):
            problems = problems_of(ids, tokenizer, each)
            counts["replies"] += 1
            counts["valid"] += not problems
            counts["full"] += len(ids) == room
            counts["ids"] += len(ids)
            counts["problems"] += problems[:1] if len(counts["problems"]) < 5 else []
    return counts | {"seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rows", type=int, default=1000, dest="number")
    parser.add_argument("--tokenizer", default=EMBEDDED_MODEL)
    parser.add_argument("--format", default=None)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_pretrained(args.tokenizer, args.format)
    rows = [row for row in load_conversations(args.rows)[0] if row.tools][: args.number]
    counts = measure(rows, tokenizer, temperature=args.temperature)
    print(json.dumps({"rows": args.rows.name, "temperature": args.temperature, **counts}))


if __name__ == "__main__":
    main()
