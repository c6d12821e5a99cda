"""What a run leaves for people: `metrics.jsonl`, `run.json` and `loss.png`. Nothing is filtered, nothing is smoothed."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

METRICS, RUN, PICTURE = "metrics.jsonl", "run.json", "loss.png"
PACKAGES = ("torch", "triton", "safetensors", "tokenizers", "huggingface_hub", "numpy", "pyarrow")
RUN_FILES = (
    METRICS,
    RUN,
    PICTURE,
    "adapter_config.json",
    "adapter_model.safetensors",
    "new_rows.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def clear_run(directory: Path, checkpoint: str) -> None:
    """Removes what an earlier run left in a folder, its `checkpoint` folder too, and nothing else."""
    for name in (checkpoint, checkpoint + ".old", checkpoint + ".partial"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in RUN_FILES:
        (directory / name).unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file in one step: a stop leaves the old or the new one, never half of one."""
    _write_text(path, json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def append_metrics(directory: Path, line: dict[str, Any]) -> None:
    """Adds one line to `metrics.jsonl`; a loss that is not a number is written as it is (NaN)."""
    with (directory / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; empty without the file. A last line that a stop cut is left out."""
    path = directory / METRICS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def keep_metrics_until(directory: Path, step: int) -> None:
    """Drops the lines after `step`: a resumed run writes them again."""
    kept = [line for line in read_metrics(directory) if line["step"] <= step]
    _write_text(directory / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def versions() -> dict[str, str | None]:
    """Python, the platform, and each package that the program uses; null for one that is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of this source tree, with "+changes" where files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git("rev-parse", "HEAD", folder=folder)
        return commit + (
            "+changes"
            if _git("status", "--porcelain", "--untracked-files=no", folder=folder)
            else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def describe_run(run: dict[str, Any]) -> list[str]:
    """The content of `run.json` as a few sentences for the start of a run."""
    reading, rendering, packing = run["data"]["reading"], run["data"]["rendering"], run["packing"]
    tokens, supervised = rendering["tokens"], rendering["supervised_tokens"]
    return [
        f"above: one training row; green is what the model learns to write. In all {supervised:,} of {tokens:,} tokens "
        f"are supervised ({100 * supervised / tokens:.0f}%)",
        f"rows: {reading['rows']} read, {reading['dropped']} unreadable, {reading['repaired_rows']} repaired, "
        f"{rendering['dropped_overlong']} too long, {rendering['truncated']} cut, "
        f"{run['data']['held_out_rows']} held out; {packing['packs']} packs, {100 * packing['efficiency']:.0f}% full",
        f"device: {run['device']}; {run['trainable_parameters']:,} parameters train in {run['total_steps']} steps",
        "; ".join(
            f"{name.replace('_', ' ')}: {choice} ({reason})"
            for name, (choice, reason) in run["choices"].items()
        ),
    ]


def show_sample(directory: Path, console: Console) -> None:
    """The reply to the run's sample question before and after training, side by side; nothing without two of them."""
    samples = [line["sample"] for line in read_metrics(directory) if line.get("sample")]
    if len(samples) > 1:
        table = Table("before", "after", title=Text(samples[0]["question"]))
        table.add_row(Text(samples[0]["reply"]), Text(samples[-1]["reply"]))
        console.print(table)


def draw_loss(directory: Path) -> None:
    """Draws `loss.png` from `metrics.jsonl`: every step's loss, and each evaluation's loss and exact-call accuracy."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    lines = read_metrics(directory)
    steps = [line for line in lines if line.get("loss") is not None]
    evaluated = [line for line in lines if line.get("eval_loss") is not None]
    scored = [
        line for line in lines if (line.get("tool_call_accuracy") or {}).get("overall") is not None
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    mark = "." if len(steps) < 2 else ""  # a line needs two points to be seen
    axis.plot(
        [line["step"] for line in steps],
        [line["loss"] for line in steps],
        lw=1,
        marker=mark,
        label="training",
    )
    if evaluated:
        losses = [line["eval_loss"] for line in evaluated]
        axis.plot([line["step"] for line in evaluated], losses, "o-", label="held out")
    axis.set(xlabel="optimizer step", ylabel="loss per supervised token (nats)", ylim=(0, None))
    axis.grid(alpha=0.3)
    if scored:
        other = axis.twinx()
        shares = [100 * line["tool_call_accuracy"]["overall"] for line in scored]
        other.plot(
            [line["step"] for line in scored], shares, "s--", color="tab:green", label="exact calls"
        )
        other.set(ylabel="exact calls, held out (%)", ylim=(-2, 102))
        axis.plot([], [], "s--", color="tab:green", label="exact calls")
    axis.legend(loc="center right")  # the curves begin and end in the corners
    partial = directory / (PICTURE + ".partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(directory / PICTURE)
