"""From names of folders to a model that can be asked: base, adapter, and the tokenizer of both."""

from pathlib import Path

import torch

from agent.foreign import check_template
from common.device import pick_device, pick_precision
from data.tokenizer import NAMED, Tokenizer
from lora.adapter import load_adapter, read_config
from model.config import Gemma2Config
from model.embedding import new_rows, resize_embedding, set_rows
from model.loader import checkpoint_folder, load_gemma2
from model.transformer import Gemma2

EMBEDDED = "embedded"  # the shipped base in an adapter that was uploaded, or written long ago
EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded" / "weights"


def model_folder(name: str | Path | None) -> Path:
    """The folder of a base, downloaded where the name is a hub id; None is the embedded base."""
    if name in (None, "", EMBEDDED):
        return EMBEDDED_MODEL
    # An adapter names the embedded base by its folder, so that PEFT finds it; after a move to
    # another machine it is this repository's.
    is_moved = Path(str(name)).parts[-2:] == EMBEDDED_MODEL.parts[-2:]
    if is_moved and not Path(str(name)).exists():
        return EMBEDDED_MODEL
    return checkpoint_folder(str(name))


def load_model(
    base: str | None,
    adapter: Path | None = None,
    *,
    device: str = "auto",
    dtype: str | None = "auto",
) -> tuple[Gemma2, Tokenizer]:
    """A base with its adapter, in evaluation mode, and the tokenizer that was saved with them.

    base: a folder or hub id; None takes the one that the adapter names, or the embedded one.
    dtype: auto, bf16, fp16 or fp32; None takes the dtype of the base's files.
    Raises: ValueError, FileNotFoundError for what is not there or does not fit together.
    """
    where = pick_device(device)
    if not base and adapter:
        base = read_config(adapter).base_model
    folder = model_folder(base)  # downloads nothing where the name is a folder
    # The adapter's tokenizer knows the tags and the words that training used. PEFT writes adapters
    # without one.
    has_own = adapter is not None and (adapter / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_pretrained(adapter if adapter and has_own else folder)
    if adapter:
        check_template(adapter, tokenizer)
    weights = None
    if dtype is not None:
        size = Gemma2Config.from_json(folder).num_parameters
        # On a CPU a small model is loaded in fp32, so the size is needed before any weight is read.
        weights = pick_precision(dtype, where, size).dtype
    model = load_base(folder, tokenizer, where, weights)
    if adapter:
        load_adapter(model, adapter)
    return model.eval(), tokenizer


def load_base(
    folder: Path,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    seed: int = 0,
) -> Gemma2:
    """The base with a row for each tag of the tokenizer; `seed` is that of the new rows' noise.

    Raises: ValueError if vocabulary and tokenizer do not fit, or disagree on a control token.
    """
    _check_control_ids(folder, tokenizer)
    model = load_gemma2(folder, device, dtype)
    size = model.config.vocab_size
    if size == len(tokenizer):
        return model  # a merged model has its rows already
    if not _fits(size, tokenizer):
        raise ValueError(
            f"{folder}: the model has {size} rows, but its tokenizer {tokenizer.base_size} entries "
            f"without the tags and {len(tokenizer)} with them; "
            "give the tokenizer that belongs to the model"
        )
    # A base may know some of the tags and need rows for the others only. In the order of their ids,
    # because the rows are appended.
    padding = [tokenizer.tag_ids[tag] for tag in tokenizer.absent if tokenizer.tag_ids[tag] < size]
    new = [*sorted(padding), *range(size, len(tokenizer))]
    rows = new_rows(model, [tokenizer.sub_tokens(tokenizer.decode([id])) for id in new], seed)
    set_rows(model, padding, rows[: len(padding)])
    resize_embedding(model, rows[len(padding) :])
    return model


def _fits(size: int, tokenizer: Tokenizer) -> bool:
    """True if a base of `size` rows belongs to the tokenizer.

    Gemma 3's text models lack the row of the picture's token, the last of the vocabulary; the
    others have rows to spare, up to a multiple of 64, which tags can take.
    """
    base = tokenizer.base_size
    is_spared = all(id in tokenizer.control_ids for id in range(size, base)) and size < base
    return is_spared or size == base or (size > base and size == -(-base // 64) * 64)


def _check_control_ids(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer whose control tokens have changed places against the base's config.

    Nothing in a tokenizer alone shows that: a model would begin its text with the token that ended
    every text it has seen.
    """
    config = Gemma2Config.from_json(folder)
    names = {getattr(tokenizer, name): name for name in NAMED}
    expected = [
        ("bos_token_id", config.bos_token_id, ["bos_id"]),
        ("pad_token_id", config.pad_token_id, ["pad_id"]),
        # Published configs name one of the two tokens that end a reply, or both.
        *(("eos_token_id", id, ["eos_id", "end_of_turn_id"]) for id in config.stop_ids),
    ]
    for field, id, allowed in expected:
        # An id without such a name, as in a config that leaves the field out, says nothing.
        if names.get(id, allowed[0]) not in allowed:
            raise ValueError(
                f"{folder}: config.json has {id} as {field}, but its tokenizer says that this is "
                f"{NAMED[names[id]]}; give the tokenizer that belongs to the model"
            )
