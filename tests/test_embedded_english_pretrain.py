"""The pretraining of the next base: it learns, its rate ends at zero, what is missing is named."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from builders import TOKENIZER
from tokenizers import Tokenizer

from embedded.english.gate import gate, gate_documents
from embedded.english.generate.recipe import Recipe
from embedded.english.network import see_branches, start_model
from embedded.english.packs import packs, to_batch
from embedded.english.pretrain import (
    find_before,
    find_tokenizer,
    parse_args,
    rate_scale,
    record,
    train_step,
)
from embedded.english.stages import STAGES
from embedded.pretrain_model import CONFIG, head_loss, new_model
from embedded.pretrain_state import Optimizers, State
from model.loader import save_gemma2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def test_a_few_steps_lower_the_loss(tokenizer: Tokenizer) -> None:
    base = new_model(0, torch.float32)
    see_branches(base)
    optimizers = Optimizers(base, 0.02, 3e-3)
    found = packs(tokenizer, gate_documents("one", Recipe(("travel",)), 4), 512)
    batch = to_batch(list(islice(found, 1)), 512)
    losses = [train_step(base, head_loss, optimizers, [batch], scale=1.0) for _ in range(3)]
    assert losses[-1] < losses[0] - 0.3


def test_the_gate_scores_every_kind(tokenizer: Tokenizer) -> None:
    base = new_model(0, torch.float32)
    see_branches(base)
    scores = gate(base, tokenizer, Recipe(("travel",)), rows=1, length=512, lists=4)
    kinds = ("one", "two", "talk", "unfit", "missing", "known_one")
    assert {f"{kind}_whole" for kind in kinds} | {"one_fill", "missing_lack"} <= set(scores)
    assert all(0.0 <= value <= 1.0 for value in scores.values())


def test_the_rate_warms_up_and_only_the_last_stage_decays() -> None:
    last, trunk = STAGES[:2]
    assert rate_scale(trunk, State()) < 0.01
    assert rate_scale(trunk, State(tokens=trunk.tokens), 0.9) == 1.0
    assert rate_scale(last, State(tokens=last.tokens // 2)) == pytest.approx(0.5)
    assert rate_scale(last, State(tokens=last.tokens // 2), 0.75) == pytest.approx(0.25)
    assert rate_scale(last, State(tokens=last.tokens)) == 0.0


def test_a_stage_begins_with_the_one_before_or_with_what_is_named(tmp_path: Path) -> None:
    named = tmp_path / "named"
    save_gemma2(new_model(0, torch.bfloat16), named)
    whole = parse_args(["--out", str(tmp_path), "--after", str(named)])
    befores = [find_before(number, whole) for number in range(3)]
    assert befores == [named, tmp_path / "warm", tmp_path / "wide"]
    later = ["--out", str(tmp_path), "--first", "2"]
    with pytest.raises(ValueError, match="wide: expected the exported model"):
        find_before(2, parse_args(later))
    assert find_before(2, parse_args([*later, "--after", str(named)])) == named


def test_a_base_of_another_size_is_refused(tmp_path: Path) -> None:
    small = replace(CONFIG, hidden_size=64, intermediate_size=64)
    save_gemma2(new_model(0, torch.bfloat16, small), tmp_path)
    with pytest.raises(ValueError, match="width 256, 6 layers.*width 64 and 6 layers"):
        start_model(tmp_path)
    save_gemma2(new_model(0, torch.bfloat16), tmp_path)
    assert torch.isfinite(start_model(tmp_path).model.embed_tokens.weight).all()


def test_the_tokenizer_comes_with_the_model(tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    with pytest.raises(ValueError, match="which the model was trained with, found no such file"):
        find_tokenizer(empty, out)
    find_tokenizer(TOKENIZER, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (TOKENIZER / name).read_bytes()
    (out / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is another tokenizer than"):
        find_tokenizer(TOKENIZER, out)
    assert (out / "tokenizer.json").read_text(encoding="utf-8") == "{}"


def test_the_record_goes_on_from_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "pretrain.json").write_text('{"tokens": 1000, "steps": 5}', encoding="utf-8")
    first = record(STAGES[0], tmp_path, State(tokens=200, steps=1), {"one_whole": 0.5})
    assert first["tokens"] == 1200
    (tmp_path / "pretrain.json").write_text(json.dumps(first), encoding="utf-8")
    second = record(STAGES[1], tmp_path, State(tokens=30, steps=1), {})
    assert second["tokens"] == 1230 and isinstance(second["stages"], list)
    assert [one["stage"] for one in second["stages"]] == ["grammar", "warm", "wide"]


@pytest.mark.parametrize("wrong", [["--share", "2"], ["--first", "2", "--last", "1"], []])
def test_arguments_that_cannot_be_meant_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(wrong)
