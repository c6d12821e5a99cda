"""How fast tokens are written: against Transformers and PEFT, and against the memory's bandwidth.

    python -m benchmarks.generate --config 2b|270m|tiny [--model FOLDER] [--out FILE.jsonl]
    python -m benchmarks.generate --evaluate 64          # the embedded base's scoring, by batches

Each way writes the same number of tokens behind the same prompts, in turns, around one set of
weights: "ours" and "transformers" alone, "one" and "peft" with an adapter of rank 16 and eight
token rows beside the base, "four" with row i's adapter i mod 4. A row per way and batch size, as
soon as it is known: seconds to the first token, milliseconds of a later one, and the share of the
bandwidth that is the weights' bytes by that time; the bandwidth is what a sum reads, in the same
run. A model that fits into the processor's cache can have a share above 1.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agent.evaluate import like_length_batches, reply_limit, write_replies
from agent.loading import EMBEDDED_MODEL, load_model
from benchmarks.adapters import write_adapters
from benchmarks.our_model import CONFIGS, random_model, twin
from benchmarks.peer_model import transformers_model
from benchmarks.timing import WARM_UP, quantiles, synchronize, write_rows
from common.device import DTYPES, pick_device, pick_precision
from data.dataset import load_conversations
from lora.adapter import load_adapter
from lora.many import add_adapters
from lora.rows import Adapters, Row
from model.generate import decode
from model.loader import load_gemma2
from model.transformer import Gemma2

Times = list[float]  # when the prompt was given, and each of its tokens written; seconds
Clock = Callable[[], float]
Write = Callable[[list[list[int]], int], Times]

console = Console(width=110)
HELD_OUT = EMBEDDED_MODEL.parent / "rows" / "heldout.jsonl"
WAYS = ("ours", "transformers", "one", "peft", "four")
COUNT, RANK = 4, 16  # adapters
# The processor's time leaves out what other programs take; with several threads it is their sum.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


def write_ours(
    model: Gemma2, adapters: Adapters | None, now: Clock, prompts: list[list[int]], tokens: int
) -> Times:
    if adapters is not None:
        names = adapters.names
        adapters.use([Row(names[row % len(names)]) for row in range(len(prompts))])
    return [now(), *(now() for _ in decode(model, prompts, tokens, ()))]


def write_theirs(model: Any, now: Clock, prompts: list[list[int]], tokens: int) -> Times:
    """By `generate`, as its users call it."""
    from transformers import StoppingCriteria

    class Tick(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            ids[0, -1].item()  # the token has been written once the host has it
            times.append(now())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    given = torch.tensor(prompts, device=next(model.parameters()).device)
    times = [now()]
    with torch.no_grad():
        model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            do_sample=False,
            stopping_criteria=[Tick()],
        )
    return times


def make_peer(model: Gemma2, adapter: Path | None) -> Any:
    """Transformers' model around our weights, in PEFT's where there is an adapter."""
    base = transformers_model(model, use_cache=True).eval()
    base.generation_config.eos_token_id = None  # every reply has its whole length
    base.generation_config.pad_token_id = 0
    if adapter is None:
        return base
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter)).eval()


def ways(args: argparse.Namespace, model: Gemma2, folder: Path) -> Iterator[tuple[str, Write]]:
    """The ways that were asked for, in their order."""
    folders = write_adapters(model, folder, count=COUNT, rank=RANK)
    for name in args.ways:
        if name in ("transformers", "peft"):
            adapter = folders["0"] if name == "peft" else None
            yield name, partial(write_theirs, make_peer(model, adapter), CLOCKS[args.clock])
            continue
        own, adapters = twin(model), None
        if name == "one":
            load_adapter(own, folders["0"])
        elif name == "four":
            adapters = add_adapters(own, folders)
        yield name, partial(write_ours, own.eval(), adapters, CLOCKS[args.clock])


def read_bandwidth(buffer: torch.Tensor, now: Clock) -> float:
    """Bytes a second that a sum reads, the best of three."""
    best = float("inf")
    for _ in range(3):
        synchronize(buffer.device)
        start = now()
        buffer.sum()
        synchronize(buffer.device)
        best = min(best, now() - start)
    return buffer.nbytes / best


def read_bytes(model: Gemma2) -> int:
    """Bytes of the weights that every token reads: of an untied embedding it reads one row."""
    head, table = model.lm_head.weight, model.model.embed_tokens.weight
    total = sum(p.nbytes for p in model.parameters())
    return total - (0 if head is table else table.nbytes)


def measure(
    args: argparse.Namespace, model: Gemma2, keep: Callable[[dict[str, Any]], None]
) -> None:
    """A row for each way and batch size."""
    device = model.model.embed_tokens.weight.device
    # Larger than any cache; integers, whose sum takes hardly any arithmetic.
    buffer = torch.zeros(1 << 25, dtype=torch.int64, device=device)
    size, prompt = read_bytes(model), list(range(5, 5 + args.prompt))
    with tempfile.TemporaryDirectory() as folder:
        calls = dict(ways(args, model, Path(folder)))
        for rows in args.rows:
            firsts: dict[str, Times] = {name: [] for name in calls}
            later: dict[str, Times] = {name: [] for name in calls}
            bandwidth = 0.0
            for number in range(args.rounds):
                for name, call in calls.items():
                    bandwidth = max(bandwidth, read_bandwidth(buffer, CLOCKS[args.clock]))
                    times = call([prompt] * rows, args.tokens)
                    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
                    # The first round and each reply's first tokens allocate and compile.
                    if number or args.rounds == 1:
                        firsts[name].append(gaps[0])
                    later[name] += gaps[1 + WARM_UP :]
            for name in calls:
                found = quantiles(later[name])
                rate = size / (found["p50_ms"] / 1e3)
                keep(
                    {"name": "generate", "impl": name, "rows": rows, "prompt": args.prompt}
                    | {"first_ms": quantiles(firsts[name])["p50_ms"]}
                    | found
                    | {"tokens_per_second": 1e3 * rows / found["p50_ms"], "weight_bytes": size}
                    | {"bandwidth": bandwidth, "share_of_bandwidth": rate / bandwidth}
                    | {"x_first": quantiles(later[args.ways[0]])["p50_ms"] / found["p50_ms"]}
                )


def evaluate(args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """The embedded base's first replies to held-out rows, in batches and one at a time."""
    model, tokenizer = load_model(None, device=args.device, dtype=args.dtype)
    rows = load_conversations(HELD_OUT)[0][: args.evaluate]
    limit = reply_limit(rows, tokenizer)
    seconds, now = {}, CLOCKS[args.clock]
    for name, groups in (("batched", [rows]), ("alone", [[row] for row in rows])):
        start = now()
        for group in groups:
            write_replies(model, tokenizer, group, limit)
        seconds[name] = now() - start
    batches = sum(1 for _ in like_length_batches([1] * len(rows), limit, limit))
    row = {
        "name": "evaluate",
        "clock": args.clock,
        "config": "embedded",
        "rows": len(rows),
        "batches": batches,
    }
    keep(row | seconds | {"x_alone": seconds["alone"] / seconds["batched"]})


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", choices=CONFIGS, default="tiny", help="with random weights")
    parser.add_argument("--model", help="a folder or .gguf file instead")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="the first is 1.00")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="for a busy CPU: processor")
    parser.add_argument("--evaluate", type=int, help="score this many held-out rows instead")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="append a JSON line for each row to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    device = pick_device(args.device)

    def keep(row: dict[str, Any]) -> None:
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
        console.print_json(data=shown, indent=None)
        if args.out:
            write_rows(args.out, [row], device)

    if args.evaluate:
        evaluate(args, keep)
        return 0
    if args.model:
        model, where = load_gemma2(args.model, device, None), {"model": Path(args.model).name}
    else:
        config, where = CONFIGS[args.config], {"config": args.config}
        dtype = pick_precision(args.dtype, device, config.num_parameters).dtype
        model = random_model(config, dtype, device)
    where["clock"] = args.clock
    where["dtype"] = str(model.lm_head.weight.dtype).removeprefix("torch.")
    measure(args, model.eval(), lambda row: keep(where | row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
