"""The driver of a card's measurements, with parts that are no benchmarks: limits, tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_report
from benchmarks.gpu import Part
from benchmarks.gpu_report import START, STOP, table

NOTE = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.name);"
ROW: dict[str, Any] = {"name": "train_step", "packs": 8, "length": 1024, "documents": 1}
ROW |= {"dtype": "bf16", "checkpointing": "none", "peak_bytes": 26 * 10**9}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Part]:
    """One that is fine, one that fails, one that never ends, and one more."""
    (tmp_path / "code").mkdir()
    found = []
    for name, end in (("fine", ""), ("broken", "sys.exit(3)"), ("endless", "while True: pass")):
        program = tmp_path / "code" / f"{name}.py"
        program.write_text(f"{NOTE}\n{end}\n")
        found.append(Part(name, f"{program} {{rows}}", 1 if end.startswith("while") else 60))
    found.append(Part("last", f"{tmp_path}/code/fine.py {{rows}}", 60))
    monkeypatch.setattr(gpu, "PARTS", tuple(found))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "describe", lambda _: "Fake card")
    monkeypatch.setattr(gpu, "write_report", lambda _: None)
    return found


def statuses(out: Path) -> dict[str, str]:
    lines = (out / "parts.jsonl").read_text().splitlines()
    return {line["part"]: line["status"] for line in map(json.loads, lines)}


def test_a_part_that_dies_or_never_ends_costs_itself_alone(
    parts: list[Part], tmp_path: Path
) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 0
    expected = {"fine": "done", "broken": "failed (3)", "endless": "too slow", "last": "done"}
    assert statuses(tmp_path) == expected
    assert all((tmp_path / f"{part.name}.jsonl").read_text() for part in parts)


def test_a_later_call_goes_on(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.main(["--out", str(tmp_path), "--only", "fine"]) == 0
    (tmp_path / "fine.jsonl").unlink()
    monkeypatch.setattr(gpu, "PARTS", (parts[0], parts[3]))
    assert gpu.main(["--out", str(tmp_path), "--minutes", "0.1"]) == 0
    assert statuses(tmp_path) == {"fine": "done"}  # no time for the last
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert statuses(tmp_path) == {"fine": "done", "last": "done"}
    assert not (tmp_path / "fine.jsonl").exists()  # not run again


def test_what_the_callers_time_cut_short_is_run_again(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PARTS", (Part("endless", parts[2].arguments, 60),))
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.5)
    for count in (1, 2):
        gpu.main(["--out", str(tmp_path), "--minutes", str(1.5 / 60)])
        assert (tmp_path / "parts.jsonl").read_text().count('"cut"') == count


@pytest.mark.parametrize("device", ["Fake H100", "NVIDIA H100"])
def test_the_table_is_made_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{START}\nold\n{STOP}\nafter\n")
    monkeypatch.setattr(gpu_report, "PAGE", page)
    ours = ROW | {"impl": "ours", "p50_ms": 160.0, "tokens_per_second": 51_200.0}
    dead = ROW | {"impl": "peft", "out_of_memory": True, "error": "OutOfMemoryError: CUDA"}
    block: dict[str, Any] = {"rows": 8192, "rank": 16, "dropout": 0.0, "mode": "graph"}
    rows = {
        "parts": [{"part": "step", "status": "done", "seconds": 9, "device": device}],
        "step": [ours, dead],
        "block": [block | {"impl": n, "p50_ms": t} for n, t in (("frozen", 4.0), ("fused", 4.4))],
    }
    saved = {"lora": 60.0, "loss": 20.0, "all": 90.0}
    medians = {"p50_ms": {"plain": 250.0}, "saved_ms": saved}
    rows["attribute"] = [ours, ROW | {"name": "attribution"} | medians]
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    gpu_report.write_report(tmp_path)
    text = table(tmp_path)
    assert "ours | 160 ms, 51,200 tokens/s, peak 26.0 GB" in text
    assert "peft | out of memory" in text
    assert "saved by | lora 60 ms (24%), loss 20 ms (8%), all 90 ms (36%)" in text
    assert "as a graph | frozen 4.00 ms = 1; fused 1.10" in text
    assert (tmp_path / "steps.png").stat().st_size > 1000
    is_real = not device.startswith("Fake")
    assert ("51,200" in page.read_text()) == is_real
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
