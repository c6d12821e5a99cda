"""The pretraining of the next base: it learns, its rate ends at zero, what is missing is named."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from embedded.english.gate import gate, gate_documents
from embedded.english.generate.recipe import Recipe
from embedded.english.network import CONFIG, see_branches, start_model
from embedded.english.packs import packs, to_batch
from embedded.english.pretrain import (
    find_before,
    find_tokenizer,
    parse_args,
    rate_scale,
    train_step,
)
from embedded.english.stages import STAGES
from embedded.pretrain_model import head_loss, new_model
from embedded.pretrain_state import Optimizers, State

SHIPPED = Path(__file__).parents[1] / "embedded" / "weights"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The shipped one: another vocabulary, of which every id fits this model too."""
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


def test_a_few_steps_lower_the_loss(tokenizer: Tokenizer) -> None:
    base = new_model(0, torch.float32, CONFIG)
    see_branches(base)
    optimizers = Optimizers(base, 0.02, 3e-3)
    found = packs(tokenizer, gate_documents("one", Recipe(("travel",)), 4), 512)
    batch = to_batch(list(islice(found, 1)), 512)
    losses = [train_step(base, head_loss, optimizers, batch, scale=1.0) for _ in range(3)]
    assert losses[-1] < losses[0] - 0.3


def test_the_gate_scores_every_kind(tokenizer: Tokenizer) -> None:
    base = new_model(0, torch.float32, CONFIG)
    see_branches(base)
    scores = gate(base, tokenizer, ("travel",), rows=1, length=512, lists=4)
    kinds = ("one", "two", "talk", "unfit", "missing", "known_one")
    assert {f"{kind}_whole" for kind in kinds} | {"one_fill", "missing_lack"} <= set(scores)
    assert all(0.0 <= value <= 1.0 for value in scores.values())


def test_the_rate_warms_up_and_only_the_last_stage_decays() -> None:
    trunk, last = STAGES[1], STAGES[2]
    assert rate_scale(trunk, State()) < 0.01
    assert rate_scale(trunk, State(tokens=trunk.tokens), 0.9) == 1.0
    assert rate_scale(last, State(tokens=last.tokens // 2)) == pytest.approx(0.5)
    assert rate_scale(last, State(tokens=last.tokens // 2), 0.75) == pytest.approx(0.25)
    assert rate_scale(last, State(tokens=last.tokens)) == 0.0


def test_a_stage_begins_with_the_one_before_or_with_what_is_named(tmp_path: Path) -> None:
    whole = parse_args(["--out", str(tmp_path)])
    assert [find_before(n, whole) for n in range(3)] == [
        None,
        tmp_path / "first",
        tmp_path / "second",
    ]
    later = ["--out", str(tmp_path), "--first", "2"]
    with pytest.raises(ValueError, match="second: expected the exported model"):
        find_before(2, parse_args(later))
    assert find_before(2, parse_args([*later, "--after", str(SHIPPED)])) == SHIPPED


def test_a_base_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="width 320, 4096 pieces.*width 256 and 2048 pieces"):
        start_model(0, SHIPPED)


def test_the_tokenizer_comes_with_the_model(tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    with pytest.raises(ValueError, match="which the model was trained with, found no such file"):
        find_tokenizer(parse_args(["--out", str(out), "--after", str(empty)]))
    args = parse_args(["--out", str(out), "--after", str(SHIPPED)])
    find_tokenizer(args)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (SHIPPED / name).read_bytes()
    (out / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is another tokenizer than"):
        find_tokenizer(args)
    assert (out / "tokenizer.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("wrong", [["--share", "2"], ["--first", "2", "--last", "1"]])
def test_arguments_that_cannot_be_meant_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(wrong)
