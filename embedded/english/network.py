"""The base that is pretrained on: its weights, and attention by branches.

Size, tiles and compilation are those of `embedded.pretrain_model`.
Shapes: B packs, T positions, D model width.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from embedded.english.packs import Batch, branch_mask, tensors
from embedded.english.words import FAR
from embedded.pretrain_model import CONFIG, TiledMasks, compute_dtype
from model.loader import load_gemma2
from model.transformer import Gemma2


def start_model(before: Path) -> Gemma2:
    """The weights of an exported base. Raises: ValueError for another size."""
    base = load_gemma2(before, dtype=compute_dtype())
    got = base.config
    # What words.py changes may differ.
    free = {name: getattr(CONFIG, name) for name in ("vocab_size", *FAR)}
    if replace(got, **free) != CONFIG:
        raise ValueError(
            f"{before}: expected a base of this pretraining (width {CONFIG.hidden_size}, "
            f"{CONFIG.num_hidden_layers} layers), got one of width {got.hidden_size} and "
            f"{got.num_hidden_layers} layers; name an export of embedded.pretrain"
        )
    return base.requires_grad_(True)


def see_branches(base: Gemma2) -> None:
    """Lets the model attend by the groups of `packs.Batch`, which take the place of document ids.

    After `compile_blocks`, which gives the model masks by documents.
    """
    window = base.config.sliding_window

    def choose(positions: Tensor, groups: Tensor | None, *_: object) -> TiledMasks:
        assert groups is not None
        return TiledMasks(
            full=branch_mask(positions, groups, None),
            sliding=branch_mask(positions, groups, window),
        )

    base.model.choose_attention = choose  # type: ignore[method-assign, assignment]


def hidden_states(base: Gemma2, batch: Batch) -> Tensor:
    """The decoder's output (B, T, D)."""
    tokens, positions, groups, _ = tensors(batch)
    return base.model(tokens, positions, groups)
