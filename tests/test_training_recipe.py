"""Flags from a file: read as the command line is, refused as it is, under it; --quiet; --help."""

import json
from argparse import _HelpAction
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from benchmarks.small_run import SmallRun
from common.cli import Parser
from training import recipe, settings

COURSE = Path(__file__).parents[1] / "recipes" / "course.toml"
Refused = Callable[[str], str]


def parsed(tmp_path: Path, text: str, *flags: str) -> Any:
    """The settings from a file of this text and the flags beside it."""
    path = tmp_path / "flags.toml"
    path.write_text(text, encoding="utf-8")
    return train.parse_args(["--config", str(path), *flags])


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(text) -> the one line on standard error."""

    def run(text: str) -> str:
        with pytest.raises(SystemExit) as end:
            parsed(tmp_path, text)
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1
        return said

    return run


def test_a_file_has_the_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    text = """
    rank = 4
    lr = 1e-3
    seed = -7
    max_length = 300   # as run.json writes it
    dataset = ["a.jsonl", "b.jsonl=2"]
    targets = ["q_proj", "v_proj"]
    adapt = "course"
    quiet = true
    shard = false
    """
    args = parsed(tmp_path, text, "--rank", "8", "--seed=3")
    assert (args.rank, args.seed) == (8, 3)
    assert (args.lr, args.max_length, args.adapt) == (1e-3, 300, "course")
    assert (args.dataset, args.targets) == (["a.jsonl", "b.jsonl=2"], "q_proj,v_proj")
    assert args.quiet and not args.shard
    # One list replaces the other, and what nobody gives keeps its default.
    args = parsed(tmp_path, text, "--dataset", "c.jsonl")
    assert args.dataset == ["c.jsonl"] and (args.rank, args.clip) == (4, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rnak = 4", "expected a flag's name, got rnak; did you mean rank?"),
        ("rnak = 4\nlearning-rat = 1", "got learning-rat; did you mean"),
        ("rank = 0", "flags.toml: argument --rank: expected at least 1, got 0"),
        ('rank = "many"', "flags.toml: argument --rank: invalid whole number value: 'many'"),
        ('adapt = "all"', "flags.toml: argument --adapt: invalid choice: 'all'"),
        ("lr = nan", "flags.toml: argument --lr: expected at least 0"),
        ("resume = 1", "resume: expected true or false, got 1; change it"),
        ("rank = true", "rank: expected a value, got true; change it"),
        ("[optimization]\nlr = 1", "did you mean"),
        ("lr = {a = 1}", "lr: expected a number, a text or a list of them, got a table"),
        ("lr = 2024-01-01", "lr: expected a number, a text or a list of them"),
        ("max-length = 9\nmax_length = 8", "max-length and max_length are the same flag"),
        ("config = 'b.toml'", "expected a flag's name, got config"),
        ("rank 4", "expected TOML, got Expected '=' after a key"),
        ("a = " + "[" * 5000, "expected TOML, got"),
        ("lr = " + "9" * 5000, "flags.toml: "),
    ],
    ids=lambda text: str(text)[:16],
)
def test_a_wrong_file_is_one_sentence(refused: Refused, text: str, says: str) -> None:
    said = refused(text)
    assert says in said and "flags.toml: " in said


def test_a_file_that_is_not_there_or_no_text_is_one_sentence(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw.toml").write_bytes(b"rank = \xff")
    for name, says in (("none.toml", "no such file"), ("raw.toml", "UTF-8"), (".", "a folder")):
        with pytest.raises(SystemExit) as end:
            train.parse_args(["--config", str(tmp_path / name)])
        said = capsys.readouterr().err
        assert end.value.code == 2 and says in said and said.count("\n") == 1


def test_the_courses_recipe_is_the_courses() -> None:
    args = train.parse_args(["--config", str(COURSE), "--device", "cpu"])
    assert (args.rank, args.alpha, args.dropout, args.lr) == (16, 64, 0.05, 1e-4)
    assert (args.adapt, args.max_length, args.accumulate, args.micro_batch) == (
        "course",
        1500,
        4,
        1,
    )
    assert (args.warmup, args.weight_decay, args.clip, args.epochs) == (0.1, 0.1, 1.0, 1.0)
    assert args.model == "google/gemma-2-2b-it" and args.max_steps is None
    assert args.dataset == ["Jofthomas/hermes-function-calling-thinking-V1"]
    # Every key of the file says something: none repeats a line for nothing.
    keys = {line.split(" = ")[0] for line in COURSE.read_text().splitlines() if " = " in line}
    assert {"lr", "rank", "eval-fraction", "train-on"} <= keys


def test_the_courses_recipe_runs_and_a_run_goes_on_with_its_file(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a random base, with what the file cannot know here given on the command line."""
    own = small.flags(tmp_path / "out", "--config", str(COURSE), "--max-steps", "1", "--quiet")
    assert train.main(own) == 0 and train.console.is_plain
    content = json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]
    assert content["config"] == str(COURSE)
    assert (content["adapt"], content["alpha"]) == ("course", 64.0)
    said = capsys.readouterr().out
    for word in ("[+", "before and after ─", "the adapter in use", "\x1b"):
        assert word not in said
    for word in ("What: ", "On what: ", "How long: ", "step 1/1", "step 0: held-out", "done; "):
        assert word in said
    assert train.main([*own, "--resume"]) == 0
    # Without the file the settings are others, and are named.
    bare = [flag for flag in own if flag not in ("--config", str(COURSE))]
    assert train.main([*bare, "--resume"]) == 2
    assert "--adapt was 'course' and is 'rows'" in capsys.readouterr().err


def test_help_tells_every_default(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[Parser] = []
    monkeypatch.setattr(recipe, "parse", lambda parser, _: parsers.append(parser))
    monkeypatch.setattr(settings, "with_defaults", lambda *_: None)
    train.parse_args([])
    formatter = parsers[0]._get_formatter()
    for action in parsers[0]._actions:
        if action.nargs != 0 and not isinstance(action, _HelpAction):
            text = formatter._get_help_string(action) or ""
            assert "default" in text, action.option_strings
