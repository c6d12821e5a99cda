"""Loss, gradient norm and a hash of the gradients, step by step, of three small runs on a CPU.

    PYTHONPATH=. python tests/train_traces.py            # prints the traces, as JSON
    PYTHONPATH=. python tests/train_traces.py --write    # keeps them, after a change that was meant

Plain code paths are asked for, so that the same bits come out of every x86 processor: the
libraries otherwise choose instructions, and with them the order of sums, by the processor.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "train_traces.json"
RUNS = {
    "rows": "--dropout 0 --accumulate 1",
    "course": "--adapt course --dropout 0.1 --accumulate 2 --clip 0",
    "mistral": "--format mistral --train-on tool-calls --micro-batch 2 --accumulate 1 "
    "--checkpoint-activations full --dropout 0.1",
}
# Read when torch is imported.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}


def machine() -> str:
    """Where a trace holds to the bit: one version of PyTorch, one kind of processor."""
    import torch

    return f"{'.'.join(torch.__version__.split('.')[:2])} {platform.system()} {platform.machine()}"


def run_trace(name: str) -> list[dict[str, Any]]:
    """Trains in this process; the trace's lines."""
    import train
    from benchmarks.small_run import SmallRun
    from training.ranks import Ranks

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        small = SmallRun(Path(folder), steps=3, save_every=0)
        small.make_inputs()
        flags = small.flags(Path(folder) / "out", *RUNS[name].split())
        args = train.parse_args(flags)
        args.ranks, train.console.quiet = 1, True
        (Path(folder) / "out").mkdir()
        run, _, _ = train.build(args, Ranks(), Path(folder) / "out")
        hashes: list[str] = []

        def hash_gradients(optimizer: Any, *_: Any) -> None:
            digest = hashlib.sha256()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    digest.update(parameter.grad.numpy().tobytes())
            hashes.append(digest.hexdigest())

        run.optimizer.register_step_pre_hook(hash_gradients)
        for step in range(1, 4):
            line = train.train_step(run, step)
            numbers = {"loss": line["loss"], "grad_norm": line["grad_norm"]}
            lines.append({"step": step, **numbers, "gradients": hashes[-1]})
    return lines


def fresh_traces() -> dict[str, list[dict[str, Any]]]:
    """The traces by name, made in a process of its own, with the plain code paths."""
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=ROOT,
        env=os.environ | PLAIN | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    traces: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return traces


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        text = json.dumps({"machine": machine(), "traces": fresh_traces()}, indent=1)
        FILE.write_text(text + "\n", encoding="utf-8")
    else:
        print(json.dumps({name: run_trace(name) for name in RUNS}))


if __name__ == "__main__":
    main()
