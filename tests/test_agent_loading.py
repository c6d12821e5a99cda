"""A base and its tokenizer: rows for the tags, the one that Gemma 3 lacks, and spare ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import TOKENIZER

from agent.loading import load_base
from benchmarks.tiny_base import write_tiny_base
from data.tokenizer import Tokenizer
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2


def base_of(folder: Path, size: int, seed: int = 3) -> Path:
    """A random base with `size` rows, beside the shipped tokenizer's files."""
    write_tiny_base(folder)
    torch.manual_seed(seed)
    config = load_gemma2(folder).config
    save_gemma2(Gemma2(replace(config, vocab_size=size)), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The shipped tokenizer with a picture's token at its end, as Gemma 3's has it."""
    folder = tmp_path_factory.mktemp("plain")
    data = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    size = max(*data["model"]["vocab"].values(), *(entry["id"] for entry in data["added_tokens"]))
    entry = data["added_tokens"][0] | {"id": size + 1, "content": "<image_soft_token>"}
    data["added_tokens"].append(entry)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return Tokenizer.from_pretrained(folder, "mistral")  # tags that the file lacks


def load(folder: Path, tokenizer: Tokenizer) -> Gemma2:
    return load_base(folder, tokenizer, torch.device("cpu"), torch.float32, seed=1)


def test_rows_that_a_base_lacks_or_has_to_spare(plain: Tokenizer, tmp_path: Path) -> None:
    size, tags = plain.base_size, sorted(plain.tag_ids.values())
    assert plain.absent and tags[0] == size and size - 1 in plain.control_ids
    padded = -(-size // 64) * 64
    assert padded > len(plain)
    for rows in (size, size - 1, padded):
        folder = base_of(tmp_path / str(rows), rows)
        before = load_gemma2(folder).model.embed_tokens.weight
        after = load(folder, plain).model.embed_tokens.weight
        assert len(after) == max(rows, len(plain))
        assert torch.equal(after[: min(rows, size)], before[: min(rows, size)])
        # The tags' rows start near their own pieces, wherever the rows come from.
        for tag, id in plain.tag_ids.items():
            mean = after[plain.sub_tokens(tag)].mean(0)
            assert torch.cosine_similarity(after[id], mean, dim=0) > 0.7, (rows, tag)
        assert torch.equal(after[len(plain) :], before[len(plain) :])


def test_another_number_of_rows_is_refused(plain: Tokenizer, tmp_path: Path) -> None:
    for rows in (plain.base_size - 40, plain.base_size + 2, 64 * (plain.base_size // 64 + 2)):
        with pytest.raises(ValueError, match=f"the model has {rows} rows.*belongs to the model"):
            load(base_of(tmp_path / str(rows), rows), plain)
