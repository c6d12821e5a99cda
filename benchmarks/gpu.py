"""Everything that a card is asked, in order of value, in as many calls as it takes.

    python -m benchmarks.gpu --out DIR [--minutes 25]

Each part is a process of its own with a limit of its own, and its rows are written as they come: a
part that dies, or that runs out of time, costs only what it had not written. DIR/parts.jsonl says
what has been done; a later call with the same DIR goes on from there. At the end of each call
DIR/table.md and the pictures are made from the rows that exist, and on a real card
the table of docs/results.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_report import write_report
from common.device import describe
from training.run_folder import git_commit

STEP = "-m benchmarks.train_step --device cuda --config 2b --rounds 10"
TIMED = "-m benchmarks.gpu_parts --out {rows}"

LEAST_SECONDS = 15.0  # what it takes to import and to build a model


@dataclass(frozen=True)
class Part:
    """One process: Python's arguments, in which {rows}, {out} and {dataset} are paths.

    `seconds` is its limit; what ends earlier leaves its time to the others.
    """

    name: str
    arguments: str
    seconds: int


PARTS = (
    Part("check", "-m pytest -q -s -o addopts= -p no:cacheprovider tests/test_gpu.py", 300),
    Part("step", f"{STEP} --packs 8 --length 1024 --only ours --out {{rows}}", 240),
    Part("flex", f"{TIMED} flex", 240),
    Part(
        "peers",
        f"{STEP} --packs 4 --length 1024 --no-peak --out {{rows}} "
        "--only ours,peft,peft_16bit,peft_16bit_compiled,peft_16bit_flex",
        300,
    ),
    Part(
        "block",
        "-m benchmarks.lora_linear --device cuda --shapes block --rows 2048,8192 --ranks "
        "16 --dropouts 0,0.05 --rounds 30 --out {rows}",
        360,
    ),
    Part(
        "attribute",
        f"{STEP} --packs 4 --length 1024 --attribute --no-peak --out {{rows}}",
        200,
    ),
    Part("embedded", "train.py --device cuda --output {out}/embedded --overwrite", 300),
    Part(
        "long",
        f"{STEP} --packs 4 --length 2048 --documents 3 --only ours --no-peak --out {{rows}}",
        150,
    ),
    Part("kernels", f"{TIMED} kernels", 90),
    Part("breakdown", f"{STEP} --packs 8 --length 1024 --breakdown", 120),
    Part("decode", f"{TIMED} decode", 120),
    Part(
        "full",
        f"{STEP} --packs 1 --length 1500 --documents 3 --checkpoint-activations full "
        "--only ours --out {rows}",
        150,
    ),
    Part(
        "course",
        f"{STEP} --packs 4 --length 1500 --documents 3 --only ours --no-peak --out {{rows}}",
        120,
    ),
    Part("capped", f"{TIMED} capped --dataset {{dataset}} --tokenizer {{tokenizer}}", 400),
    Part("out_of_memory", f"{STEP} --packs 8 --length 1024 --no-peak --out {{rows}}", 180),
)


def done_parts(out: Path) -> dict[str, str]:
    """What became of each part in earlier calls: its name -> its status."""
    file = out / "parts.jsonl"
    if not file.is_file():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["part"]: line["status"] for line in lines}


def run_part(part: Part, args: argparse.Namespace, seconds: float) -> tuple[str, float]:
    """Runs a part for at most `seconds`, its output in DIR/<part>.txt; its status, and its time."""
    rows, start = args.out / f"{part.name}.jsonl", time.monotonic()
    paths = {"rows": rows, "out": args.out, "dataset": args.dataset}
    paths |= {"tokenizer": args.tokenizer}
    command = [sys.executable, *(word.format(**paths) for word in part.arguments.split())]
    # What one part compiles, the next one finds.
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": str(args.out / "cache" / "inductor"),
        "TRITON_CACHE_DIR": str(args.out / "cache" / "triton"),
        "PYTHONUNBUFFERED": "1",
    }
    environment = caches | dict(os.environ)
    with (args.out / f"{part.name}.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # With its children: a peak is measured in a process of its own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return ("too slow" if seconds >= part.seconds else "cut"), time.monotonic() - start
    return ("done" if code == 0 else f"failed ({code})"), time.monotonic() - start


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, logs and caches")
    parser.add_argument("--minutes", type=float, default=25.0, help="of this call")
    parser.add_argument("--only", help=f"comma-separated, out of {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="also what has been done already")
    embedded = Path(__file__).parents[1] / "embedded"
    rows, tokenizer = embedded / "rows" / "train.jsonl", embedded / "weights"
    parser.add_argument("--dataset", type=Path, default=rows, help="rows of the capped run")
    parser.add_argument("--tokenizer", type=Path, default=tokenizer, help="its folder, there too")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.only = args.only.split(",") if args.only else names
    if unknown := set(args.only) - set(names):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    args = parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu: PyTorch finds no CUDA device here", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    before = {} if args.again else done_parts(args.out)
    for part in (part for part in PARTS if part.name in args.only):
        if before.get(part.name, "cut") != "cut":
            print(f"{part.name}: {before[part.name]}, in an earlier call")
            continue
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            print(f"{part.name}: no time left; the same command goes on from here")
            break
        status, took = run_part(part, args, min(part.seconds, left))
        print(f"{part.name}: {status}, {took:.0f} s", flush=True)
        line = {"part": part.name, "status": status, "seconds": round(took, 1)}
        line |= {"device": describe(torch.device("cuda")), "commit": git_commit()}
        with (args.out / "parts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    write_report(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
