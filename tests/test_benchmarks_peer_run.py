"""A run of train.py made once more with Transformers and PEFT: the same losses, step by step."""

import json
from pathlib import Path

import pytest

import train
from benchmarks import peer_run
from benchmarks.small_run import SmallRun
from training.run_folder import read_metrics

pytest.importorskip("transformers")
pytest.importorskip("peft")


def test_the_peer_of_a_run_has_its_losses_rates_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SmallRun(tmp_path, steps=5, save_every=0)
    small.make_inputs()
    # Two micro-batches, so that the divisor of a step shows; a row rate of its own as well.
    more = ["--dropout", "0", "--accumulate", "2", "--row-lr-scale", "3", "--eval-calls", "1"]
    assert train.main(small.flags(tmp_path / "run", *more)) == 0
    record = tmp_path / "run" / "run.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    del content["arguments"]["logger"]  # as in a run from before there was such a flag
    record.write_text(json.dumps(content), encoding="utf-8")
    assert peer_run.main([str(tmp_path / "run"), "--output", str(tmp_path / "peer")]) == 0
    ours = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    theirs = [line for line in read_metrics(tmp_path / "peer") if "loss" in line]
    assert len(ours) == len(theirs) == 5
    for our, their in zip(ours, theirs, strict=True):
        same = ("step", "lr", "tokens", "supervised_tokens")
        assert [our[key] for key in same] == [their[key] for key in same]
        assert their["loss"] == pytest.approx(our["loss"], rel=1e-5)
        assert their["grad_norm"] == pytest.approx(our["grad_norm"], rel=1e-3)
    assert ours[-1]["loss"] < ours[0]["loss"]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["tool_call_accuracy"]["n"]["overall"] == 1


def test_a_run_that_the_peer_cannot_follow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"arguments": {"dropout": 0.05}}', encoding="utf-8")
    with pytest.raises(ValueError, match="expected dropout 0.0, got 0.05"):
        peer_run.read_arguments(tmp_path)
