"""The recorded curve of the pretraining, and a run beside it."""

import json
from pathlib import Path

import pytest

from embedded.english.curve import compare, main, read_log, read_recorded, record
from embedded.english.stages import STAGES


def test_every_stage_is_recorded_from_its_beginning_to_its_end() -> None:
    recorded = read_recorded()
    assert list(recorded) == [stage.name for stage in STAGES]
    for stage in STAGES:
        tokens = list(recorded[stage.name])
        assert tokens == sorted(tokens) and tokens[0] <= 204_800
        # The first one's end came by the clock
        assert tokens[-1] > 0.98 * stage.tokens or stage.name == "warm"


def write_log(folder: Path, stage: str, losses: dict[int, float]) -> Path:
    (folder / stage).mkdir(parents=True)
    lines = [json.dumps({"tokens": tokens, "loss": loss}) for tokens, loss in losses.items()]
    file = folder / stage / "log.jsonl"
    file.write_text("\n".join([*lines, json.dumps({"tokens": 5, "one_pick": 0.5})]) + "\n")
    return file


def test_the_losses_of_a_million_tokens_are_compared_where_both_have_them() -> None:
    recorded = {500_000: 2.0, 1_000_000: 1.0, 1_500_000: 0.5, 2_500_000: 0.1}
    run = {500_000: 1.0, 700_000: 9.0, 1_000_000: 1.0, 1_500_000: 0.7}
    assert compare(recorded, run) == [(1_000_000, 2, 1.5, 1.0), (2_000_000, 1, 0.5, 0.7)]
    assert compare(recorded, {}) == []


def test_a_log_is_recorded_and_read_again(tmp_path: Path) -> None:
    file = write_log(tmp_path, STAGES[1].name, {100: 0.5, 200: 0.25})
    assert read_log(file) == {100: 0.5, 200: 0.25}
    record(tmp_path, tmp_path / "curve.jsonl")
    assert read_recorded(tmp_path / "curve.jsonl") == {STAGES[1].name: {100: 0.5, 200: 0.25}}
    write_log(tmp_path / "more", STAGES[0].name, {100: 2.5})
    record(tmp_path / "more", tmp_path / "curve.jsonl")  # a stage that is not there keeps its own
    assert list(read_recorded(tmp_path / "curve.jsonl")) == [STAGES[0].name, STAGES[1].name]


def test_the_command_prints_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = STAGES[0].name
    tokens, loss = next(iter(read_recorded()[stage].items()))
    write_log(tmp_path, stage, {tokens: 7.5})
    main([str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.split() == [stage, "1,000,000", "1", f"{loss:.4f}", "7.5000"]
    write_log(tmp_path / "other", stage, {7: 7.5})
    main([str(tmp_path / "other")])
    assert "no point in common" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none")])
