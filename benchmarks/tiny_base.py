"""A base of random weights that any program loads in no time: two narrow layers."""

from pathlib import Path
from typing import Any

import torch

from agent.loading import EMBEDDED_MODEL
from data.tokenizer import Tokenizer
from model.config import Gemma2Config
from model.loader import save_gemma2
from model.transformer import Gemma2


def tiny_config(vocab_size: int, **changes: Any) -> Gemma2Config:
    """Two layers of width 32; `changes` are fields of the configuration."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
    }
    return Gemma2Config(vocab_size=vocab_size, **sizes | changes)


def write_tiny_base(folder: Path) -> Path:
    """A checkpoint with the embedded base's tokenizer, without rows for the tags."""
    torch.manual_seed(0)
    size = Tokenizer.from_pretrained(EMBEDDED_MODEL).base_size
    config = tiny_config(size, sliding_window=16, max_position_embeddings=1024)
    save_gemma2(Gemma2(config), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED_MODEL / name).read_bytes())
    return folder
