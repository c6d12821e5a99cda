"""The whole step against Transformers + PEFT: the benchmark's own check of losses and gradients."""

import json
from pathlib import Path

import pytest

from benchmarks import train_step

pytest.importorskip("transformers")
pytest.importorskip("peft")

SMALL = "--config tiny --device cpu --dtype fp32 --no-peak".split()


def test_both_sides_have_one_loss_before_they_are_timed(tmp_path: Path) -> None:
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
    committed = (results / "train_step_cpu_epyc.jsonl").read_text().splitlines()[-1]
    assert list(json.loads(out.read_text())) == list(json.loads(committed))


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    args = train_step.parse_args([*SMALL, "--length", "64"])
    kinds = ("full_attention", "sliding_attention")
    monkeypatch.setattr(train_step.Peer, "masks", lambda *_: dict.fromkeys(kinds))
    args.documents = 2
    with pytest.raises(AssertionError, match="peft"):
        train_step.measure(args, [])
