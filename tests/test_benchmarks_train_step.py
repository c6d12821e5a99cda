"""The whole step against Transformers + PEFT: the benchmark's own check of losses and gradients, at a small size."""

import json

import pytest

from benchmarks import train_step

pytest.importorskip("transformers")
pytest.importorskip("peft")


def test_both_sides_have_one_loss_before_they_are_timed(tmp_path):
    out = tmp_path / "rows.jsonl"
    flags = [
        "--config",
        "tiny",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--length",
        "96",
        "--packs",
        "2",
        "--documents",
        "3",
        "--rounds",
        "1",
        "--no-peak",
        "--out",
        str(out),
    ]
    assert train_step.main(flags) == 0
    ours, peft = (json.loads(line) for line in out.read_text().splitlines())
    assert (ours["impl"], peft["impl"]) == ("ours", "peft")
    assert ours["loss"] == pytest.approx(peft["loss"], rel=1e-5)
    assert ours["supervised"] == 2 * 3 * 10 and ours["ms"]["step"] > 0 and 0 < ours["of_floor"] < 1


def test_a_difference_is_found(monkeypatch):
    args = train_step.parse_args(
        "--config tiny --device cpu --dtype fp32 --length 64 --no-peak".split()
    )
    peer = train_step.Peer
    monkeypatch.setattr(
        peer,
        "masks",
        lambda self, batch, dtype: dict.fromkeys(("full_attention", "sliding_attention")),
    )
    args.documents = 2
    with pytest.raises(AssertionError, match="peft"):
        train_step.measure(args, [])
