"""What several test files build alike: a random base in a folder, rows, what a run leaves."""

import json
from pathlib import Path
from typing import Any

import torch

from agent.loading import load_base
from data.tokenizer import Tokenizer
from lora.adapter import save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora

ROOT = Path(__file__).parents[1]
# The tokenizer of 2,048 pieces that the base of the grammar has; the shipped base may get another.
TOKENIZER = ROOT / "tests" / "grammar"
RUN_FILES = set(
    "adapter_config.json adapter_model.safetensors tokenizer.json tokenizer_config.json "
    "chat_template.jinja metrics.jsonl loss.png run.json README.md checkpoint".split()
)
TOOL = {"name": "get_time", "description": "the time", "parameters": {"city": "string"}}
CITIES = "Oslo Rome Lima Cairo Quito Paris Delhi Tokyo Kyiv Bern Riga Accra".split()


def time_row(city: str) -> dict[str, Any]:
    """A row in the course's form: one question, one call."""
    call = json.dumps({"name": "get_time", "arguments": {"city": city}})
    reply = f"<think>I need the time.</think><tool_call>\n{call}\n</tool_call>"
    system = f"You can call functions. <tools> {json.dumps([TOOL])} </tools>"
    return {
        "conversations": [
            {"role": "system", "content": system},
            {"role": "human", "content": f"What time is it in {city}?"},
            {"role": "model", "content": reply},
        ]
    }


def time_rows(folder: Path) -> Path:
    """A JSONL file of a row for each city."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(time_row(city)) + "\n" for city in CITIES), encoding="utf-8")
    return path


def make_adapter(base: Path, folder: Path, rank: int = 4) -> Path:
    """An adapter of random weights with the tags' rows, and its tokenizer beside it."""
    tokenizer = Tokenizer.from_pretrained(base)
    model = load_base(base, tokenizer, torch.device("cpu"), torch.float32)
    config = LoRAConfig(
        rank=rank,
        alpha=8,
        token_ids=tuple(sorted(tokenizer.tag_ids.values())),
        base_model=str(base),
    )
    add_lora(model, config)
    for seed, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        generator = torch.Generator().manual_seed(seed)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_adapter(model, folder, config)
    tokenizer.save(folder)
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
