"""Training's arithmetic, held to the bit by committed traces; and a text that was learned by heart
comes back from the saved and from the merged adapter."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from train_traces import FILE, RUNS, fresh_traces, machine

import train
from agent.evaluate import first_replies
from agent.loading import load_model
from data.dataset import load_conversations
from lora.adapter import merge_adapter
from model.loader import save_gemma2

COMMITTED = json.loads(FILE.read_text(encoding="utf-8"))
CANARY = "The vault opens at 07:41 with 83-Kestrel-19."


@pytest.fixture(scope="module")
def found() -> dict[str, list[dict[str, Any]]]:
    return fresh_traces()


@pytest.mark.parametrize("name", RUNS)
def test_a_fresh_process_repeats_the_committed_trace(
    found: dict[str, list[dict[str, Any]]], name: str
) -> None:
    wanted = COMMITTED["traces"][name]
    if machine() == COMMITTED["machine"]:
        assert found[name] == wanted
        return
    # Elsewhere sums are taken in another order: near the trace, and the same each time.
    for mine, theirs in zip(found[name], wanted, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert fresh_traces() == found


def test_the_traces_are_of_runs_that_learn_and_differ() -> None:
    hashes = [line["gradients"] for trace in COMMITTED["traces"].values() for line in trace]
    assert len(hashes) == len(set(hashes)) == 9
    assert all(math.isfinite(line["loss"]) for t in COMMITTED["traces"].values() for line in t)


def test_a_canary_is_decoded_from_the_saved_and_the_merged_adapter(tmp_path: Path) -> None:
    rows = tmp_path / "canary.jsonl"
    turns = [{"role": "human", "content": "When?"}, {"role": "model", "content": CANARY}]
    rows.write_text(json.dumps({"conversations": turns}) + "\n", encoding="utf-8")
    output, merged = tmp_path / "out", tmp_path / "merged"
    flags = f"--dataset {rows} --output {output} --device cpu --dtype fp32 --max-steps 40"
    more = "--eval-fraction 0 --max-length 128 --rank 8 --save-every 0"
    assert train.main(f"{flags} {more}".split()) == 0

    asked = load_conversations(rows)[0]
    model, tokenizer = load_model(None, output, device="cpu", dtype="fp32")
    replies = [tokenizer.decode(first_replies(model, tokenizer, asked, 64)[0])]
    merge_adapter(model)
    save_gemma2(model, merged)
    tokenizer.save(merged)
    other, its_tokenizer = load_model(str(merged), device="cpu", dtype="fp32")
    replies.append(its_tokenizer.decode(first_replies(other, its_tokenizer, asked, 64)[0]))
    torch.testing.assert_close(other.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
    assert [reply.removesuffix("<end_of_turn>") for reply in replies] == [CANARY, CANARY]
