"""Puts a run's losses beside the recorded ones: `python -m embedded.english.curve runs/english`.

The recorded curve is `curve.jsonl` here: {"stage", "tokens" of the stage, "loss"}, a point every 25
steps. Another machine rounds otherwise: the numbers differ a little, the way down does not.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from embedded.english.stages import STAGES

RECORDED = Path(__file__).parent / "curve.jsonl"
EVERY = 1_000_000  # tokens of a line
Losses = dict[int, float]  # by the stage's tokens so far


def read_log(file: Path) -> Losses:
    """The losses of a stage's log; where a run was stopped and went on, the later ones."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["tokens"]: line["loss"] for line in lines if "loss" in line}


def read_recorded(file: Path = RECORDED) -> dict[str, Losses]:
    """The recorded losses by stage."""
    stages: dict[str, Losses] = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        stages.setdefault(line["stage"], {})[line["tokens"]] = line["loss"]
    return stages


def compare(recorded: Losses, run: Losses) -> list[tuple[int, int, float, float]]:
    """For every million tokens that both have: its end, the number of points that both have, and
    the mean loss at them, recorded and of the run.
    """
    lines = []
    shared = sorted(recorded.keys() & run.keys())
    for end in range(EVERY, max(shared, default=0) + EVERY, EVERY):
        at = [tokens for tokens in shared if end - EVERY < tokens <= end]
        if at:
            before, here = (fmean(losses[tokens] for tokens in at) for losses in (recorded, run))
            lines.append((end, len(at), before, here))
    return lines


def record(folder: Path, file: Path = RECORDED) -> None:
    """Writes the losses of a run's stages as the recorded ones; other stages keep theirs."""
    stages = read_recorded(file) if file.is_file() else {}
    for stage in STAGES:
        log = folder / stage.name / "log.jsonl"
        if log.is_file():
            stages[stage.name] = read_log(log)
    lines = [
        json.dumps({"stage": stage.name, "tokens": tokens, "loss": loss}) + "\n"
        for stage in STAGES
        for tokens, loss in stages.get(stage.name, {}).items()
    ]
    file.write_text("".join(lines), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.english.curve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="--out of embedded.english.pretrain")
    parser.add_argument("--record", action="store_true", help=f"write them to {RECORDED.name}")
    args = parser.parse_args(argv)
    logs = {s.name: args.folder / s.name / "log.jsonl" for s in STAGES}
    found = {name: log for name, log in logs.items() if log.is_file()}
    if not found:
        parser.error(
            f"{args.folder}: expected a folder for each stage with a log.jsonl, found none"
        )
    if args.record:
        record(args.folder)
        return
    recorded = read_recorded()
    print(f"{'stage':8} {'tokens to':>11} {'points':>6} {'recorded':>9} {'here':>7}")
    for name, log in found.items():
        means = compare(recorded.get(name, {}), read_log(log))
        for end, count, before, here in means:
            print(f"{name:8} {end:11,} {count:6} {before:9.4f} {here:7.4f}")
        if not means:
            print(f"{name:8} no point in common with the recorded curve")


if __name__ == "__main__":
    main()
