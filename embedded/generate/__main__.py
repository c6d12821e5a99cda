"""Writes the function-calling rows (`python -m embedded.generate`): same seed, same bytes."""

import argparse
from pathlib import Path

from embedded.generate.calls import NUM_TRAIN, heldout_rows, training_rows, write_rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.generate",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    folder = Path("embedded/rows")
    add("--out", type=Path, default=folder, help="folder of train.jsonl and heldout.jsonl")
    add("--seed", type=int, default=0, help="of both files")
    add("--rows", type=int, default=NUM_TRAIN, help="number of training rows")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, tools = training_rows(args.seed, args.rows)
    write_rows(args.out / "train.jsonl", rows)
    write_rows(args.out / "heldout.jsonl", heldout_rows(args.seed, tools))


if __name__ == "__main__":
    main()
