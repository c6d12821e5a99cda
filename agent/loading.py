"""From names of folders to a model that can be asked: base, adapter and the tokenizer that was saved with it."""

import argparse
from pathlib import Path

import torch

from common.device import pick_device, pick_precision
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter, read_config
from model.config import Gemma2Config
from model.embedding import new_rows, resize_embedding
from model.loader import load_gemma2, resolve_folder
from model.transformer import Gemma2

EMBEDDED = "embedded"  # the name of the shipped base in adapter_config.json
EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded" / "weights"


def model_folder(name: str | Path | None) -> Path:
    """The folder of a base model: the embedded one for None or "embedded", a folder, or a downloaded hub repository."""
    return EMBEDDED_MODEL if name in (None, "", EMBEDDED) else resolve_folder(str(name))


def load_base(
    folder: Path,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: torch.dtype | None,
    seed: int = 0,
) -> Gemma2:
    """The base with a row for each tag of the tokenizer. Raises: ValueError if vocabulary and tokenizer do not fit."""
    model = load_gemma2(folder, device, dtype)
    size = model.config.vocab_size
    if size == len(tokenizer):
        return model
    if size != tokenizer.base_size:
        raise ValueError(
            f"{folder}: the model has {size} rows, but its tokenizer {tokenizer.base_size} entries without the tags and "
            f"{len(tokenizer)} with them; give the tokenizer that belongs to the model"
        )
    new = [
        tag for tag in tokenizer.tag_ids if tokenizer.tag_ids[tag] >= size
    ]  # a base may know some of them
    tags = sorted(new, key=lambda tag: tokenizer.tag_ids[tag])
    resize_embedding(model, new_rows(model, [tokenizer.sub_tokens(tag) for tag in tags], seed))
    return model


def load_agent(args: argparse.Namespace) -> tuple[Gemma2, Tokenizer]:
    """Base, adapter and the tokenizer that was saved with it."""
    device = pick_device(args.device)
    base = args.model or (read_config(args.adapter).base_model if args.adapter else None)
    folder = model_folder(base)
    # An adapter that PEFT wrote may come without its tokenizer; then the base's is the one.
    has_own = args.adapter and (args.adapter / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_pretrained(args.adapter if has_own else folder)
    precision = pick_precision(args.dtype, device, Gemma2Config.from_json(folder).num_parameters)
    # A merged folder keeps the base's own dtype, whatever would be fastest here.
    model = load_base(
        folder, tokenizer, device, None if args.merge and args.dtype == "auto" else precision.dtype
    )
    if args.adapter:
        load_adapter(model, args.adapter)
    return model.eval(), tokenizer
