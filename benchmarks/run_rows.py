"""The evaluations of a run of `train.py` as rows, for the tables and pictures of the pages.

    python train.py --output runs/default
    python -m benchmarks.run_rows runs/default --out benchmarks/results/default_run.jsonl
    python train.py --eval-every 33 --output runs/curve
    python -m benchmarks.run_rows runs/curve --name curve --out FILE.jsonl

Device, versions and commit are those that the run wrote down, not those of this program.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common.atomic import write_text
from training.run_folder import RUN, read_metrics

KEPT = (
    "step",
    "eval_loss",
    "tool_call_accuracy",
    "questions_accuracy",
    "free",
    "shown",
    "peak_memory_bytes",
)


def _without_folder(model: str | None) -> str | None:
    """The name of a base without the place that it has on one machine; a hub id is one already."""
    is_place = model is not None and (Path(model).is_absolute() or Path(model).suffix == ".gguf")
    return Path(model).name if model and is_place else model


def rows_of(run: Path, name: str = "whole_run") -> list[dict[str, Any]]:
    """A row for each evaluation. Raises: FileNotFoundError, ValueError for what is no run."""
    record = json.loads((run / RUN).read_text(encoding="utf-8"))
    facts = {
        "trainable_parameters": record["trainable_parameters"],
        "parameters": record["parameters"],
        "device": record["device"],
        "versions": record["versions"],
        "commit": record["git_commit"],
        "total_steps": record["total_steps"],
        "model": _without_folder(record["arguments"]["model"]),
        "adapt": record["arguments"]["adapt"],
    }
    every = read_metrics(run)
    # Of steps and evaluations; reading and loading are not among them.
    seconds = sum(line.get("eval_seconds") or 0.0 for line in every)
    seconds += sum(x["tokens"] / x["tokens_per_second"] for x in every if "tokens" in x)
    facts["seconds"] = round(seconds, 1)
    lines = [line for line in every if line.get("tool_call_accuracy")]
    if not lines:
        raise ValueError(f"{run}: expected a run with scored evaluations, got none; train it first")
    seed = record["arguments"]["seed"]
    return [
        {"name": name, "seed": seed, **{k: line[k] for k in KEPT if k in line}, **facts}
        for line in lines
    ]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a folder that is no run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run_rows", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to write anew")
    name = "of the rows; docs/expected-results.md tells those of whole_run, the default"
    parser.add_argument("--name", choices=("whole_run", "curve"), default="whole_run", help=name)
    args = parser.parse_args(argv)
    try:
        rows = [row for run in args.runs for row in rows_of(run, args.name)]
    except (ValueError, OSError) as error:
        print(f"run_rows: {error}", file=sys.stderr)
        return 2
    write_text(args.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
