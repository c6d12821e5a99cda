"""The table and the pictures of `benchmarks.gpu`, from whatever rows there are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
START, STOP = "<!-- gpu table, written by benchmarks.gpu -->", "<!-- end of the gpu table -->"


def rows_of(out: Path) -> dict[str, list[Row]]:
    """The rows of every part, by its name."""
    found = {}
    for file in sorted(out.glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()
        found[file.stem] = [json.loads(line) for line in lines]
    return found


def step_lines(rows: dict[str, list[Row]]) -> Iterator[tuple[str, str]]:
    """Whole steps of the 2B model: what was measured, and the result."""
    for part in ("step", "peers", "long", "course", "full", "out_of_memory"):
        first = None
        for row in rows.get(part, ()):
            size = f"{row['packs']} x {row['length']}, {row['documents']} documents a pack"
            recompute = "" if row["checkpointing"] == "none" else ", blocks recomputed"
            what = f"2B step, {row['dtype']}, {size}{recompute}, {row['impl']}"
            if "error" in row:
                yield what, "out of memory" if row["out_of_memory"] else row["error"]
                continue
            first = first or row["p50_ms"]
            text = f"{row['p50_ms']:.0f} ms, {row['tokens_per_second']:,.0f} tokens/s"
            if row["p50_ms"] != first:
                text += f", {row['p50_ms'] / first:.2f} x ours"
            if row["peak_bytes"]:
                text += f", peak {row['peak_bytes'] / 1e9:.1f} GB"
            yield what, text


def attribution_lines(rows: dict[str, list[Row]]) -> Iterator[tuple[str, str]]:
    """What each part of ours takes off a step in which it has its plain form."""
    for row in rows.get("attribute", ()):
        if row["name"] == "attribution":
            whole, saved = row["p50_ms"]["plain"], row["saved_ms"]
            parts = [f"{part} {ms:.0f} ms ({ms / whole:.0%})" for part, ms in saved.items()]
            size = f"{row['packs']} x {row['length']}"
            what = f"2B step, {size}, all in plain forms {whole:.0f} ms: saved by"
            yield what, ", ".join(parts)


def block_lines(rows: dict[str, list[Row]]) -> Iterator[tuple[str, str]]:
    """The seven linears: every way against the frozen ones, as called and as a graph."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows.get("block", ()):
        if row["mode"] in ("both", "graph"):
            case = (row["rows"], row["rank"], row["dropout"], row["mode"])
            times.setdefault(case, {})[row["impl"]] = row["p50_ms"]
    for (count, rank, dropout, mode), found in times.items():
        how = "as called" if mode == "both" else "as a graph"
        what = f"seven linears, {count} rows, r {rank}, dropout {dropout}, {how}"
        if "frozen" in found:
            ratios = [f"{n} {ms / found['frozen']:.2f}" for n, ms in found.items() if n != "frozen"]
            yield what, f"frozen {found['frozen']:.2f} ms = 1; " + ", ".join(ratios)


def other_lines(rows: dict[str, list[Row]]) -> Iterator[tuple[str, str]]:
    """Attention's tiles, kernels, decoding, the small card."""
    for row in rows.get("flex", ()):
        if row["name"] == "flex_best":
            best = f"forward {row['forward']}, backward {row['backward']}"
            yield f"FlexAttention's fastest tiles at {row['head_width']}-wide heads", best
    for row in rows.get("kernels", ()):
        rate = f"{row['tflops']:.0f} TFLOP/s" if row["tflops"] else ""
        if row["terabytes_per_second"]:
            rate = f"{row['terabytes_per_second']:.2f} TB/s"
        what = f"{row['impl']}, {row['in']} to {row['out']}, R {row['rank']}, {row['rows']} rows"
        yield what, f"{1e3 * row['p50_ms']:.0f} us, {rate}"
    for row in rows.get("decode", ()):
        speed = f"{row['p50_ms']:.1f} ms a token, {row['tokens_per_second']:.0f} tokens/s"
        yield f"decoding, 2B with its adapter, {row['rows']} rows", speed
    for row in rows.get("capped", ()):
        peak = f"peak {row['peak_memory_bytes'] / 1e9:.1f} of {row['cap_bytes'] / 1e9:.0f} GB"
        speed = f"{row['tokens_per_second']:,.0f} tokens/s, {row['skipped']} steps skipped"
        what = f"fp16, 1 x 1500, {row['vocabulary']:,} head rows, {row['steps']} steps"
        yield f"{what} on a capped card", f"{peak}, {speed}"


def embedded_lines(out: Path) -> Iterator[tuple[str, str]]:
    """The embedded default end to end."""
    file = out / "embedded" / "metrics.jsonl"
    if not file.is_file():
        return
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    scored = [line["tool_call_accuracy"] for line in lines if line.get("tool_call_accuracy")]
    if len(scored) > 1:
        before, after = (f"{100 * found['overall']:.0f}%" for found in (scored[0], scored[-1]))
        yield "embedded default, exact calls before and after", f"{before}, {after}"


def table(out: Path) -> str:
    """Everything measured so far, as a Markdown table."""
    rows = rows_of(out)
    device = next((row["device"] for row in rows.get("parts", ())), "no card")
    lines = [f"| on {device} | measured |", "|---|---|"]
    last = {part["part"]: part for part in rows.get("parts", ())}  # a part may have run again
    for name, part in last.items():
        if part["status"] != "done":
            lines.append(f"| part {name} | {part['status']} after {part['seconds']:.0f} s |")
    found = [
        *step_lines(rows),
        *attribution_lines(rows),
        *block_lines(rows),
        *embedded_lines(out),
        *other_lines(rows),
    ]
    return "\n".join([*lines, *(f"| {what} | {text} |" for what, text in found)]) + "\n"


def draw(out: Path) -> None:
    """Bars of tokens a second of every whole step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        row
        for found in rows_of(out).values()
        for row in found
        if row.get("name") == "train_step" and "error" not in row
    ]
    if not rows:
        return
    labels = [f"{row['impl']}, {row['packs']} x {row['length']}" for row in rows]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.4 * len(rows)), layout="constrained")
    bars = axis.barh(range(len(rows)), [row["tokens_per_second"] for row in rows])
    axis.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_xlabel("tokens a second, one optimizer step of the 2B model")
    figure.savefig(out / "steps.png", dpi=120)
    plt.close(figure)


def write_report(out: Path) -> None:
    """DIR/table.md and DIR/steps.png; if the card is a real one, docs/results.md's table too."""
    text = table(out)
    (out / "table.md").write_text(text, encoding="utf-8")
    draw(out)
    print(text)
    page = PAGE.read_text(encoding="utf-8")
    # The stand-in for a card measures nothing that belongs there.
    if START in page and not text.startswith("| on Fake"):
        head, _, rest = page.partition(START)
        tail = rest.partition(STOP)[2]
        PAGE.write_text(f"{head}{START}\n{text}{STOP}{tail}", encoding="utf-8")
