"""The adapter that is asked: its base, merging, the evaluation of rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_adapter
from scripted import LIMIT, call, ids_of
from torch import Tensor

import infer
from agent import evaluate, loading
from data.chat import parse_reply
from data.conversation import THINK_REQUEST, SystemPrompt, ToolCall
from data.dataset import load_conversations
from data.schema import parse_row
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2


def test_a_base_that_knows_some_tags_gets_only_the_others(base: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(base)
    others = [tag for tag in tokenizer.tag_ids if tag != "<tools>"]
    tokenizer.tag_ids = {"<tools>": 7} | {tag: 2048 + i for i, tag in enumerate(others)}
    tokenizer._size = 2048 + len(others)
    model = loading.load_base(base, tokenizer, torch.device("cpu"), torch.float32)
    assert model.config.vocab_size == 2048 + len(others) == 2055


def adapted(base: Path, adapter: Path) -> Gemma2:
    model = loading.load_base(
        base, Tokenizer.from_pretrained(adapter), torch.device("cpu"), torch.float32
    )
    load_adapter(model, adapter)
    return model.eval()


def test_the_adapter_names_its_base_and_changes_the_model(base: Path, adapter: Path) -> None:
    model, tokenizer = loading.load_model(None, adapter, dtype="fp32")
    tokens = torch.tensor([[2, 40, 2050, 300]])
    assert len(tokenizer) == 2056 and torch.equal(model(tokens), adapted(base, adapter)(tokens))
    plain = loading.load_base(base, tokenizer, torch.device("cpu"), torch.float32)
    assert (model(tokens) - plain(tokens)).abs().max() > 0.1


def test_merge_writes_a_folder_that_loads_with_the_same_logits(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    relative: Callable[[Tensor, Tensor], float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / ("merged [1] " + "x" * 90)
    assert infer.main(["--adapter", str(adapter), "--merge", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    tokens = torch.tensor([[2, 4, 2048, 9, 2050, 700, 2055, 31]])
    truth = adapted(base, adapter)(tokens)
    merged = load_gemma2(folder)
    assert relative(merged(tokens), truth) < 1e-5 and merged.config.vocab_size == 2056
    tokenizer = Tokenizer.from_pretrained(folder)
    assert len(tokenizer) == 2056
    for name in ("config.json", "generation_config.json"):
        assert set(json.loads((folder / name).read_text())["eos_token_id"]) == set(
            tokenizer.stop_ids
        )
    assert infer.main(["--adapter", str(adapter), "--merge", str(folder)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert infer.main(["--adapter", str(adapter), "--merge", str(folder / "config.json")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert infer.main(
        ["--model", str(folder), "--prompt", "x", "--max-new-tokens", "2", "--json"]
    ) in (0, 1)


def test_a_merged_folder_keeps_the_dtype_of_its_base(base: Path, tmp_path: Path) -> None:
    half = shutil.copytree(base, tmp_path / "half")
    save_gemma2(load_gemma2(base, dtype=torch.float16), half)  # auto never picks fp16 on a CPU
    adapter = make_adapter(half, tmp_path / "adapter")
    flags = ["--adapter", str(adapter), "--device", "cpu", "--merge"]
    assert infer.main([*flags, str(tmp_path / "kept")]) == 0
    assert infer.main([*flags, str(tmp_path / "given"), "--dtype", "fp32"]) == 0
    kept, given = (load_gemma2(tmp_path / name) for name in ("kept", "given"))
    assert {p.dtype for p in kept.parameters()} == {torch.float16}
    assert {p.dtype for p in given.parameters()} == {torch.float32}


def test_transformers_loads_the_merged_folder_with_the_same_logits(
    base: Path, adapter: Path, tmp_path: Path, relative: Callable[[Tensor, Tensor], float]
) -> None:
    transformers = pytest.importorskip("transformers")
    assert infer.main(["--adapter", str(adapter), "--merge", str(tmp_path / "merged")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.tensor([[2, 4, 2048, 9, 2050, 700, 2055, 31]])
    with torch.no_grad():
        assert relative(adapted(base, adapter)(tokens), theirs(tokens).logits) < 1e-5
    assert set(theirs.generation_config.eos_token_id) == {1, 5}
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids(
        "<tool_call>"
    )
    assert ids == 2052


def row(question: str, reply: str) -> dict[str, Any]:
    tool = {"name": "add", "description": "Adds.", "parameters": {"a": "integer", "b": "integer"}}
    system = f"Use tools. <tools> {json.dumps([tool])} </tools>"
    return {
        "conversations": [
            {"role": "system", "content": system},
            {"role": "human", "content": question},
            {"role": "model", "content": reply},
        ]
    }


def test_evaluate_prints_the_accuracy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right call; wrong argument; right text where no call is due; garbage there; a long prompt."""
    one = call("add", a=1, b=2)
    rows = [
        row("Q0 aa", one),
        row("Q1 bbb", one),
        row("Q2 cccc", "No."),
        row("Q3 ddddd", "No."),
        row("Q4 " + "long " * 9000, one),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in [*rows, {"broken": 1}]))
    tokenizer = Tokenizer.from_pretrained(base)
    written = {
        "Q0": "<think>Sum.</think>" + one,
        "Q1": call("add", a=1, b=3),
        "Q2": "Cannot.",
        "Q3": "Cannot<cut>",
    }

    def fake(model: Any, prompts: Any, *_: Any, **__: Any) -> list[list[int]]:
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        return [
            ids_of(next(r for q, r in written.items() if f"{q} " in text), tokenizer)
            for text in texts
        ]

    monkeypatch.setattr(evaluate, "generate", fake)
    monkeypatch.setattr(evaluate, "EVAL_BATCH", 3)
    assert (
        infer.main(["--model", str(base), "--evaluate", str(file), "--max-new-tokens", "64"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["rows_dropped"] == 1 and result["names"] == "offered"
    accuracy = result["tool_call_accuracy"]
    assert accuracy["overall"] == 0.4 and accuracy["unseen"] == 1 / 3 and accuracy["no_call"] == 0.5
    assert accuracy["seen"] is None and accuracy["n"]["overall"] == 5


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_was_trained_to_think_is_asked_to_on_rows_without_thoughts(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: bool
) -> None:
    file = tmp_path / "rows.jsonl"
    thoughtful = row("Q1 bb", "<think>Sum.</think>" + call("add", a=1, b=2))
    plain = [row("Q0 aa", call("add", a=1, b=2)), thoughtful]
    file.write_text("".join(json.dumps(item) + "\n" for item in plain))
    tokenizer = Tokenizer.from_pretrained(base)
    # What a training run saves: the wording around the tools of its rows
    tokenizer.prompt = SystemPrompt("Tools: ", f"\n{THINK_REQUEST}" if trained else "")
    asked: list[str] = []

    def fake(model: Any, prompts: Any, *_: Any, **__: Any) -> list[list[int]]:
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [ids_of("No.", tokenizer) for _ in prompts]

    monkeypatch.setattr(evaluate, "generate", fake)
    evaluate.score_every_reply(load_gemma2(base), tokenizer, load_conversations(file)[0], 64)
    times = {text[text.index("Q") :][:2]: text.count(THINK_REQUEST) for text in asked}
    assert times == {"Q0": int(trained), "Q1": 1}


def test_evaluate_writes_every_reply_with_its_verdict(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = call("add", a=1, b=2), call("add", a=2, b=2)
    talk = row("Q0 aa", one)
    results = [("tool", "<tool_response>3</tool_response>"), ("model", other)]
    results += [("tool", "<tool_response>4</tool_response>"), ("model", "Three and four.")]
    talk["conversations"] += [{"role": role, "content": text} for role, text in results]
    context = row("Q1 bb", "Hm.")
    context["conversations"][-1]["weight"] = 0
    context["conversations"] += [
        {"role": "human", "content": "Well?"},
        {"role": "model", "content": "No."},
    ]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in [talk, context]))
    tokenizer = Tokenizer.from_pretrained(base)

    def fake(model: Any, prompts: Any, *_: Any, **__: Any) -> list[list[int]]:
        # By the results that the prompt shows: the turns before a reply are the row's own
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        written = [one, one, one]
        counts = [text.count("<tool_response>\n") for text in texts]
        replies = [
            "No." if "Well?" in text else written[n] for text, n in zip(texts, counts, strict=True)
        ]
        return [ids_of(reply, tokenizer) for reply in replies]

    monkeypatch.setattr(evaluate, "generate", fake)
    flags = ["--model", str(base), "--evaluate", str(file), "--max-new-tokens", "64"]
    assert infer.main([*flags, "--out", str(out)]) == 0
    accuracy = json.loads(capsys.readouterr().out)["tool_call_accuracy"]
    assert accuracy["n"]["overall"] == 4 and accuracy["overall"] == 0.5
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["row"], line["message"], line["verdict"]) for line in lines] == [
        ("rows.jsonl:1", 2, "right"),
        ("rows.jsonl:1", 4, "other arguments"),
        ("rows.jsonl:1", 6, "a call where none is due"),
        ("rows.jsonl:2", 4, "right"),
    ]
    assert lines[1]["expected"]["calls"] == [{"name": "add", "arguments": {"a": 2, "b": 2}}]
    assert lines[1]["got"]["calls"] == [{"name": "add", "arguments": {"a": 1, "b": 2}}]
    assert (
        lines[3]["expected"] == {"calls": [], "content": "No."} and "No." in lines[3]["got"]["text"]
    )
    assert infer.main([*flags, "--out", str(tmp_path / "none" / "out.jsonl")]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (call("add", a=1), "right"),
        (call("add", a=2), "other arguments"),
        (call("sub", a=1), "other tools"),
        (call("add", a=1) + call("sub", a=1), "other tools"),
        ("No.", "no call"),
        ("", "empty"),
        ("<tool_call>x</tool_call>", "broken call: not_an_object"),
    ],
)
def test_a_verdict_names_what_is_wrong(base: Path, text: str, verdict: str) -> None:
    tokenizer = Tokenizer.from_pretrained(base)
    expected = parse_row(row("q", call("add", a=1))).messages[1].calls
    reply = parse_reply(ids_of(text, tokenizer), tokenizer)
    assert evaluate.judge(expected, reply) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (call("add", a=1), "a call is missing"),
        (call("add", a=9), "a call is missing"),
        (call("mul", a=1), "other tools"),
        (call("sub", b=2) + call("add", a=1), "right"),
        (call("sub", b=2) + call("add", a=9), "other arguments"),
    ],
)
def test_one_call_of_two_that_are_due_is_a_missing_call(
    base: Path, text: str, verdict: str
) -> None:
    tokenizer = Tokenizer.from_pretrained(base)
    due = (ToolCall("add", {"a": 1}), ToolCall("sub", {"b": 2}))
    reply = parse_reply(ids_of(text, tokenizer), tokenizer)
    assert evaluate.judge(due, reply) == verdict


def test_evaluation_batches_are_alike_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "EVAL_BATCH", 3)
    monkeypatch.setattr(evaluate, "EVAL_ENTRIES", 60)
    lengths = [5, 40, 5, 6, 7, 10, 100, 99, 11]
    batches = list(evaluate.like_length_batches(lengths, limit=100, max_new_tokens=10))
    assert batches == [
        [0, 2, 3],
        [4, 5],
        [8],
        [1],
        [7],
    ]  # 3 x 21 entries are too many; 100 leaves no room at all


def test_a_long_prompt_gets_what_room_there_is(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_pretrained(base)
    model = loading.load_base(base, tokenizer, torch.device("cpu"), None)
    asked = []

    def fake(_: Any, prompts: Any, max_new_tokens: int, *_a: Any, **_k: Any) -> Any:
        asked.append((len(prompts[-1]), max_new_tokens))
        return [[7] for _ in prompts]

    monkeypatch.setattr(evaluate, "generate", fake)
    monkeypatch.setattr(evaluate, "EVAL_BATCH", 1)
    short, long = (parse_row(row(text, "No."), "here") for text in ("Hi", "word " * LIMIT * 3))
    used = len(evaluate.render_prompt(evaluate.first_question(short), tokenizer))
    some = parse_row(row("7" * (LIMIT - used - 20), "No."), "here")  # a digit is a token
    assert evaluate.first_replies(model, tokenizer, [short, some, long], 64) == [[7], [7], []]
    (_, plenty), (length, room) = asked
    assert plenty == 64 and 0 < room < 64 and length + room == LIMIT


@pytest.mark.parametrize("wire", ["hermes", "mistral"])
def test_the_length_of_a_reply_is_what_must_be_generated(base: Path, wire: str) -> None:
    tokenizer = Tokenizer.from_pretrained(base, wire)
    text = "<think>Sum.</think>" + call("add", a=1, b=2)
    conversation = parse_row(row("Q", text), "here")
    prompt = evaluate.render_prompt(evaluate.first_question(conversation), tokenizer)
    whole = evaluate.render(conversation, tokenizer).tokens
    reply = whole[len(prompt) :][: evaluate.reply_length(conversation, tokenizer)]
    assert reply[-1] == tokenizer.end_of_turn_id and tokenizer.end_of_turn_id not in reply[:-1]


def test_evaluate_with_a_real_model_and_without_room(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row("Hi", "No.")) + "\n")
    assert infer.main(["--model", str(base), "--evaluate", str(file), "--max-new-tokens", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["tool_call_accuracy"]["n"]["no_call"] == 1
    assert (
        infer.main(["--model", str(base), "--evaluate", str(file), "--max-new-tokens", str(LIMIT)])
        == 2
    )
    assert "--max-new-tokens" in capsys.readouterr().err
