"""Base and adapter as one plain model, in a folder for programs that know no adapters.

What such programs read, and what holds for each:

    Transformers, vLLM   config.json, *.safetensors, the tokenizer with its chat template
    llama.cpp            the same, and for Gemma SentencePiece's `tokenizer.model`: its converter
                         reads Gemma's vocabulary from nothing else
    Ollama               the Modelfile beside them (untried, see data/ollama.py)

A byte-level tokenizer, as the embedded base has, is one that llama.cpp's converter refuses: it only
takes those that its authors have listed (benchmarks/serve_check.py writes its GGUF file by hand).
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.evaluate import first_replies
from agent.loading import model_folder
from common.atomic import write_text
from common.hub import fetch
from data.conversation import DEFAULT_PROMPT, Conversation, Message
from data.ollama import modelfile
from data.tokenizer import Tokenizer
from data.tool_calls import read_tool
from data.tool_schema import as_tools
from lora.adapter import merge_adapter
from model.loader import save_gemma2
from model.transformer import Gemma2

SENTENCEPIECE = "tokenizer.model"
# Below this share of a delta, the training is mostly lost in the rounding: at 0.5 the error is as
# large as 0.7 of the delta itself.
LITTLE = 0.5
# Asked before and after. Few and short: a 2B model on a CPU writes three tokens a second.
COMPARED_TOKENS = 24
QUESTIONS = ("What is the weather in Paris tomorrow?", "Hello, who are you?")
WEATHER = read_tool({"name": "get_weather", "parameters": {"city": "string", "day": "string?"}})


@dataclass(frozen=True)
class MergeReport:
    """What is to be said of a merge, one sentence each."""

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_target(folder: Path) -> None:
    """Raises: ValueError for a folder that holds anything, or a path that is no folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--merge {folder}: not an empty folder; give a new one")


def write_merged(
    model: Gemma2, tokenizer: Tokenizer, folder: Path, base: str | None
) -> MergeReport:
    """Merges the adapter of `model` and writes the folder in one step: whole, or not at all.

    base: the folder or hub id that the model came from; None is the embedded one.
    Raises: ValueError for a folder in use, or an adapter that cannot be merged.
    """
    check_target(folder)
    report = MergeReport()
    before = greedy_replies(model, tokenizer)
    was_tied = model.config.tie_word_embeddings
    survived: dict[str, float] = {}
    model = merge_adapter(model, survived)
    _describe_rounding(survived, str(model.lm_head.weight.dtype).removeprefix("torch."), report)
    _compare(before, greedy_replies(model, tokenizer), report)
    if was_tied and not model.config.tie_word_embeddings:
        report.warnings.append(
            "an adapter of --adapt course unties the head from the embedding: Transformers and "
            "this program read the folder, but vLLM refuses it, and llama.cpp's converter leaves "
            "the head out, which gives wrong replies and no error; for those two train with "
            "--adapt rows"
        )
    # The base's config may lack the end of a turn; a program that reads only that never stops.
    model.replace_config(dataclasses.replace(model.config, eos_token_id=tokenizer.stop_ids))
    # Beside the folder, under another name: a merge that fails leaves nothing in the way of its
    # retry.
    partial = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.partial")
    try:
        save_gemma2(model, partial)
        tokenizer.save(partial)
        write_text(partial / "Modelfile", modelfile(tokenizer.wire, tokenizer.prompt))
        _add_sentencepiece(partial, tokenizer, base, report)
        if folder.exists():
            folder.rmdir()  # empty, or `check_target` had refused it
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    report.facts.append(f"merged model written to {folder}")
    return report


def greedy_replies(model: Gemma2, tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of the replies to a question that needs a tool and one that needs none."""
    wording = tokenizer.prompt or DEFAULT_PROMPT
    rows = [
        Conversation(
            (Message("user", text), Message("model")), as_tools([WEATHER], wording.shape), wording
        )
        for text in QUESTIONS
    ]
    # Free, because what is compared is the two models
    return first_replies(model, tokenizer, rows, COMPARED_TOKENS, free=True)


def _compare(
    before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], report: MergeReport
) -> None:
    """Says whether the merged model still writes what base and adapter wrote."""
    total = len(before)
    same = sum(one == other for one, other in zip(before, after, strict=True))
    if not any(before):
        report.facts.append("no reply was compared: the model's positions hold no question")
    elif same == total:
        report.facts.append(f"greedy replies to {total} questions are the same after merging")
    else:
        places = [
            next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0) + 1
            for one, other in zip(before, after, strict=True)
            if one != other
        ]
        report.warnings.append(
            f"greedy replies to {total - same} of {total} questions differ after merging, first at "
            f"token {min(places)}: the weights are rounded to their dtype; --dtype fp32 rounds less"
        )


def _describe_rounding(survived: dict[str, float], dtype: str, report: MergeReport) -> None:
    """Says how much of the deltas arrived in the weights."""
    worst = min(survived, key=lambda name: survived[name])
    mean = sum(survived.values()) / len(survived)
    report.facts.append(
        f"rounding to {dtype} left {100 * mean:.1f}% of the deltas on average over "
        f"{len(survived)} layers, {100 * survived[worst]:.1f}% in the worst, {worst}"
    )
    poor = [name for name, share in survived.items() if share < LITTLE]
    if poor:
        report.warnings.append(
            f"in {len(poor)} of {len(survived)} layers less than {100 * LITTLE:.0f}% of the delta "
            f"outlived the rounding to {dtype} (such as {poor[0]}): it is small against the "
            "weights; merge with --dtype fp32, or serve the adapter unmerged"
        )


def _add_sentencepiece(
    folder: Path, tokenizer: Tokenizer, base: str | None, report: MergeReport
) -> None:
    """Copies Gemma's `tokenizer.model` from the base's folder, or from its hub repository."""
    if tokenizer.is_byte_level:
        report.facts.append(
            "llama.cpp: its converter does not know this byte-level tokenizer; Transformers and "
            "vLLM read it"
        )
        return
    source = model_folder(base) / SENTENCEPIECE
    try:
        if not source.is_file() and base and not Path(base).exists():
            source = fetch(base, [SENTENCEPIECE]) / SENTENCEPIECE
        shutil.copyfile(source, folder / SENTENCEPIECE)
    except (OSError, ValueError) as error:
        report.warnings.append(
            f"no {SENTENCEPIECE} was found at the base ({error}): llama.cpp's converter needs it; "
            f"copy it from the base's repository into {folder.name}"
        )
