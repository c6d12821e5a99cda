"""What several test files build alike: a random base in a folder, rows, what a run leaves."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "embedded" / "weights"
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


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
