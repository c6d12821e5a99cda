"""The adapter folder for people: its model card, and the folder on the hub.

The card is what an adapter's page shows: how other programs load it, what it was trained on, and
what was measured. Source of its keys: the hub's docs, model-cards.md.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.json_file import read_object
from lora.adapter import CONFIG
from training.finale import share
from training.ranks import Ranks
from training.reading import parse_dataset
from training.run_folder import ADAPTER_FILES, CARD, RUN, TOKENIZER_FILES, read_metrics

# What a push uploads, by name and by ending. Never the checkpoint: it is three times the adapter,
# and only this program reads it.
UPLOADED, PICTURES = (CARD, *ADAPTER_FILES, *TOKENIZER_FILES), (".png", ".svg")

_LOADING = """\
## Loading

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
base = AutoModelForCausalLM.from_pretrained("{base}")
base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
{more}model = PeftModel.from_pretrained(base, "{folder}")
```

`resize_token_embeddings` makes room for the tags' rows, which the adapter holds. vLLM, llama.cpp
and Ollama read a merged folder: `python infer.py --adapter FOLDER --merge merged`.
"""
# The course's recipe is a difference to rows that only this program draws: lora/adapter.py
_NEW_ROWS = """\
rows = safetensors.torch.load_file("{folder}/new_rows.safetensors")
base.get_input_embeddings().weight.data[rows["ids"]] = rows["embed_tokens"]
base.get_output_embeddings().weight.data[rows["ids"]] = rows["lm_head"]
"""


def write_card(folder: Path) -> None:
    """Writes the model card of the run in `folder` from its own files."""
    run = read_object(folder / RUN)
    config = read_object(folder / CONFIG)
    base = config["base_model_name_or_path"]
    names = [parse_dataset(source)[0] for source in run["arguments"]["dataset"] or ()]
    is_embedded = run["arguments"]["model"] is None  # its licence is this repository's
    # A base on this machine was written with its whole path, which a hub id never is
    on_hub = None if Path(base).is_absolute() else base
    keys: dict[str, Any] = {
        "base_model": on_hub,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0" if is_embedded else _licence(base),
        "datasets": [name for name in names if _is_on_hub(name)],
        "tags": ["lora", "gemma", "function-calling", "tool-use"],
    }
    # JSON is YAML too, and quotes what needs quotes
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items() if value)
    name = on_hub or ("embedded/weights of the program's repository" if is_embedded else "a folder")
    loading = _LOADING.format(
        folder="this folder or its hub id",
        base=on_hub or ("embedded/weights" if is_embedded else "the base's folder"),
        more=_NEW_ROWS.format(folder="this folder") if (folder / ADAPTER_FILES[2]).exists() else "",
    )
    text = f"---\n{head}---\n# Function calling with LoRA on {name}\n\n{_training(run, names)}\n"
    write_text(folder / CARD, text + _accuracy(folder) + loading)


def _licence(base: str) -> str | None:
    """The licence of a base: what its own card says, Gemma's by name, or nothing where unknown."""
    card = Path(base) / CARD
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "gemma" if base.startswith("google/gemma") else None


def _is_on_hub(name: str) -> bool:
    """False for a file or folder of this machine, whose path is nobody else's business."""
    return "/" in name and not Path(name).exists()


def _training(run: dict[str, Any], names: list[str]) -> str:
    """One paragraph: what was trained on what."""
    arguments, counts = run["arguments"], run["data"]["rendering"]
    sources = [name if _is_on_hub(name) else Path(name).name for name in names]
    return (
        f"LoRA of rank {arguments['rank']} (alpha {arguments['alpha']:g}) and the rows of the "
        f"tags, trained for {run['total_steps']} steps on "
        f"{', '.join(sources) or 'the embedded rows'}: "
        f"{counts['supervised_tokens']:,} supervised of {counts['tokens']:,} tokens.\n"
    )


def _accuracy(folder: Path) -> str:
    """A table of what was measured on held-out rows, before and after; empty without any."""
    measured = [line for line in read_metrics(folder) if line.get("tool_call_accuracy")]
    if len(measured) < 2:
        return ""
    before, after = measured[0]["tool_call_accuracy"], measured[-1]["tool_call_accuracy"]
    lines = ["## Exact calls on held-out rows\n", "| kind | before | after |", "|-|-|-|"]
    for kind, count in after["n"].items():
        if count:
            lines.append(f"| {kind} | {share(before, kind)} | {share(after, kind)} |")
    losses = f"Held-out loss {measured[0]['eval_loss']:.3f} before, {measured[-1]['eval_loss']:.3f}"
    return "\n".join([*lines, "", losses + " after.", "", ""])


def check_push(name: str | None, ranks: Ranks) -> None:
    """Makes the hub repository `name`, or finds it: a wrong name or login shows before training.

    Raises: ValueError if it cannot be written to, on every rank.
    """
    problem = ""
    if name is not None and ranks.is_first:
        from huggingface_hub import HfApi

        try:
            HfApi().create_repo(name, exist_ok=True)
        except (OSError, ValueError) as error:  # the hub's are OSErrors, a bad name's ValueErrors
            problem = (
                f"--push {name}: expected a repository owner/name that you may write to, got "
                f"{_first_line(error)}; log in with `hf auth login`, or correct the name"
            )
    if problem := ranks.share(problem):
        raise ValueError(problem)


def push(folder: Path, name: str | None, ranks: Ranks, say: Callable[[str], None]) -> None:
    """Uploads adapter, tokenizer, card and pictures in one commit; says the page's address.

    Raises: ConnectionError if the hub does not take them; the folder is whole all the same.
    """
    if name is None or not ranks.is_first:
        return
    from huggingface_hub import CommitOperationAdd, HfApi

    model = read_object(folder / RUN)["arguments"]["model"]
    operations = []
    for path in sorted(folder.iterdir()):
        if path.name in UPLOADED or path.suffix in PICTURES:
            content: Path | bytes = path
            if path.name == CONFIG and model is None:
                # The embedded base's folder means nothing on another machine; its name does
                config = read_object(path)
                config["base_model_name_or_path"] = "embedded"
                content = (json.dumps(config, indent=2) + "\n").encode()
            operations.append(CommitOperationAdd(path.name, content))
    try:
        done = HfApi().create_commit(name, operations, commit_message="Upload the adapter")
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"--push {name}: {_first_line(error)}; the adapter is whole in {folder}, try "
            f"--resume --output {folder} --push {name}"
        ) from error
    say(f"uploaded to {done.repo_url}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
