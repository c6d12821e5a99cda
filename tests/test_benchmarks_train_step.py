"""The whole step against Transformers + PEFT: the benchmark's own check of losses and gradients."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import train_step
from benchmarks.our_model import CONFIGS, Ours, random_batch
from benchmarks.plain_forms import PlainForms
from model.config import REQUIRED

pytest.importorskip("transformers")
pytest.importorskip("peft")

SMALL = "--config tiny --device cpu --dtype fp32 --no-peak".split()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_both_sides_have_one_loss_before_they_are_timed(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if family == "gemma3":  # the 270M's kinds of layers at the tiny model's size
        sizes = asdict(replace(CONFIGS["tiny"], sliding_window=20))
        small = {name: sizes[name] for name in (*REQUIRED, "sliding_window")}
        monkeypatch.setitem(CONFIGS, "tiny", replace(CONFIGS["270m"], **small))
    out = tmp_path / "rows.jsonl"
    flags = [*SMALL, *"--length 96 --packs 2 --documents 3 --rounds 1 --out".split(), str(out)]
    assert train_step.main(flags) == 0
    ours, peft = (json.loads(line) for line in out.read_text().splitlines())
    assert (ours["impl"], peft["impl"]) == ("ours", "peft")
    assert ours["loss"] == pytest.approx(peft["loss"], rel=1e-5)
    assert ours["supervised"] == 2 * 3 * 10 and ours["ms"]["step"] > 0 and 0 < ours["of_floor"] < 1


def test_rows_have_the_fields_of_the_committed_ones(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    flags = [*SMALL, *"--length 32 --rounds 1 --only ours --out".split(), str(out)]
    assert train_step.main(flags) == 0
    results = Path(train_step.__file__).parent / "results"
    committed = (results / "attribution_cpu_epyc.jsonl").read_text().splitlines()[0]
    assert list(json.loads(out.read_text())) == list(json.loads(committed))


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = ("full_attention", "sliding_attention")
    monkeypatch.setattr(train_step.Peer, "masks", lambda *_: dict.fromkeys(kinds))
    peft, ours = rows_of(tmp_path, "--length 64 --documents 2 --rounds 1", expected_code=1)
    assert "differ from the first way's" in peft["error"] and not peft["out_of_memory"]
    assert ours["impl"] == "ours" and "error" not in ours


@pytest.mark.parametrize("calls_before", [0, 1], ids=["when compared", "when timed"])
def test_a_way_that_runs_out_of_memory_costs_its_own_row_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls_before: int
) -> None:
    whole, calls = train_step.Peer.loss, []

    def loss(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > calls_before:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.81 GiB.\nMore")
        return whole(*args)

    monkeypatch.setattr(train_step.Peer, "loss", loss)
    peft, ours = rows_of(tmp_path, "--length 32 --rounds 2", expected_code=1)
    assert peft["impl"] == "peft" and peft["out_of_memory"]
    message = "OutOfMemoryError: CUDA out of memory. Tried to allocate 7.81 GiB."
    assert peft["error"] == message and len(calls) == calls_before + 1
    assert ours["impl"] == "ours" and ours["p50_ms"] > 0 and "error" not in ours


def rows_of(folder: Path, flags: str, expected_code: int) -> list[dict[str, Any]]:
    """The rows that a run writes, in their order."""
    out = folder / "rows.jsonl"
    assert train_step.main([*SMALL, *flags.split(), "--out", str(out)]) == expected_code
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_plain_forms_compute_the_same_and_are_what_they_say(tmp_path: Path) -> None:
    """Each part in its plain form: the same loss and gradient norm, and no fused form of it."""
    rows = rows_of(tmp_path, "--attribute --length 64 --documents 2 --rounds 1", expected_code=0)
    steps = {row["impl"]: row for row in rows if row["name"] == "train_step"}
    assert list(steps) == ["ours", *train_step.PLAIN, "peft", "peft_16bit"]
    for row in steps.values():
        assert row["loss"] == pytest.approx(steps["ours"]["loss"], rel=1e-5)
    (found,) = (row for row in rows if row["name"] == "attribution")
    medians = {name: row["p50_ms"] for name, row in steps.items()}
    for part in train_step.PARTS:
        assert found["saved_ms"][part] == medians[f"plain_{part}"] - medians["ours"]
    assert found["saved_ms"]["all"] == medians["plain"] - medians["ours"]
    for row in rows:  # what can change a ratio
        assert {"torch", "transformers", "peft"} <= set(row["versions"]), row["name"]
        assert row["products"] in ("bf16", "fp32") and row["lora_impl"] == "auto"


@pytest.mark.parametrize(
    ("part", "node"),
    [
        ("lora", "_FusedBackward"),
        ("attention", "_TiledAttentionBackward"),
        ("loss", "SweepBackward"),
        ("norms", "_RMSNormBackward"),
    ],
)
def test_a_part_in_its_plain_form_leaves_the_others_alone(part: str, node: str) -> None:
    args = train_step.parse_args([*SMALL, "--length", "32"])
    ours, batch = Ours(args), random_batch(args, CONFIGS["tiny"])
    whole = graph_of(ours.loss(batch))
    plain = graph_of(PlainForms(ours, (part,)).loss(batch))
    fused = {"_FusedBackward", "_TiledAttentionBackward", "SweepBackward", "_RMSNormBackward"}
    assert fused <= whole and fused - plain == {node}
    assert graph_of(ours.loss(batch)) == whole  # as it was


def graph_of(loss: torch.Tensor) -> set[str]:
    """The names of all functions that a loss is differentiated through."""
    found, open_ends = set(), [loss.grad_fn]
    seen = set()
    while open_ends:
        function = open_ends.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        found.add(function.name())
        open_ends += [following for following, _ in function.next_functions]
    return found
