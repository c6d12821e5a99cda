"""The base that is pretrained on: its weights, and attention by branches.

Size, tiles and compilation are those of `embedded.pretrain_model`.
Shapes: B packs, T positions, D model width.
"""

from pathlib import Path

from torch import Tensor

from embedded.english.packs import Batch, branch_mask, tensors
from embedded.pretrain_model import CONFIG, TiledMasks, compute_dtype, new_model
from model.loader import load_gemma2
from model.transformer import Gemma2


def start_model(before: Path) -> Gemma2:
    """The weights of an exported base. Raises: ValueError for another size."""
    dtype = compute_dtype()
    base = new_model(0, dtype)
    exported = load_gemma2(before, dtype=dtype)
    if exported.config != CONFIG:
        raise ValueError(
            f"{before}: expected a base of this pretraining (width {CONFIG.hidden_size}, "
            f"{CONFIG.vocab_size} pieces), got one of width {exported.config.hidden_size} and "
            f"{exported.config.vocab_size} pieces; name an export of embedded.pretrain"
        )
    base.load_state_dict(exported.state_dict())
    return base


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
