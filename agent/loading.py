"""From names of folders to a model that can be asked: base, adapter, and the tokenizer of both."""

from collections.abc import Mapping
from pathlib import Path

import torch

from agent.foreign import check_template
from common.constants import EMBEDDED_MODEL as EMBEDDED_MODEL  # importable from here too
from common.device import pick_device, pick_precision
from common.products import choose_products
from data.tokenizer import NAMED, Tokenizer
from lora.adapter import load_adapter, read_config
from lora.many import add_adapters
from lora.rows import Adapters
from model.config import Gemma2Config
from model.embedding import new_rows, resize_embedding, set_rows
from model.loader import checkpoint_folder, load_gemma2
from model.transformer import Gemma2

EMBEDDED = "embedded"  # the shipped base in an adapter that was uploaded, or written long ago


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
    if not base and adapter:
        base = read_config(adapter).base_model
    folder = model_folder(base)  # downloads nothing where the name is a folder
    tokenizer = read_tokenizer(folder, adapter)
    model = load_plain(folder, tokenizer, device, dtype)
    if adapter:
        load_adapter(model, adapter)
    return model.eval(), tokenizer


def load_many(
    base: str | None, adapters: Mapping[str, Path], *, device: str = "auto", dtype: str = "auto"
) -> tuple[Gemma2, Adapters, dict[str, Tokenizer]]:
    """A base with several adapters beside it, and a tokenizer for each name, the base's first.

    The base is called by the last part of its folder or hub id.
    Raises: ValueError, FileNotFoundError as `load_model`; ValueError for adapters of different
    bases or formats, or one that is called as the base is.
    """
    named = [read_config(path).base_model for path in adapters.values()]
    bases = [base] if base else named or [EMBEDDED]
    folders = {model_folder(name) for name in bases}
    if len(folders) > 1:
        raise ValueError(
            f"--adapter: expected adapters of one base, got {', '.join(map(str, sorted(folders)))}"
            "; serve each base by itself, or name the one that is meant by --model"
        )
    folder = folders.pop()
    own = {name: read_tokenizer(folder, path) for name, path in adapters.items()}
    first = next(iter(own.values()), None)
    # Without an adapter there is no wording that training used, but the same tags
    plain = Tokenizer.from_pretrained(folder, first.format if first else None)
    name = EMBEDDED if folder == EMBEDDED_MODEL else Path(bases[0]).resolve().name
    if name in own:
        raise ValueError(f"--adapter {name}: expected another name than the base's; rename it")
    for other, tokenizer in own.items():
        if tokenizer.tag_ids != plain.tag_ids:
            raise ValueError(
                f"--adapter {other}: expected the tags of {next(iter(own))}, "
                f"{plain.format}, at the same ids, got other ones; serve it by itself"
            )
    model = load_plain(folder, plain, device, dtype)
    return model.eval(), add_adapters(model, dict(adapters)), {name: plain, **own}


def read_tokenizer(folder: Path, adapter: Path | None) -> Tokenizer:
    """The tokenizer of an adapter, or that of its base's folder where it has none.

    Raises: ValueError as `Tokenizer.from_pretrained` and `check_template`.
    """
    # The adapter's tokenizer knows the tags and the words that training used. PEFT writes adapters
    # without one.
    has_own = adapter is not None and (adapter / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_pretrained(adapter if adapter and has_own else folder)
    if adapter:
        check_template(adapter, tokenizer)
    return tokenizer


def load_plain(folder: Path, tokenizer: Tokenizer, device: str, dtype: str | None) -> Gemma2:
    """A base in the dtype that a flag means for it."""
    where, weights = pick_device(device), None
    choose_products(dtype or "bf16", where)
    if dtype is not None:
        size = Gemma2Config.from_json(folder).num_parameters
        # On a CPU a small model is loaded in fp32, so the size is needed before any weight is read.
        weights = pick_precision(dtype, where, size).dtype
    return load_base(folder, tokenizer, where, weights)


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
