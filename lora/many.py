"""Several adapters over one base: each row of a batch with its own adapter, or with none.

Shapes: B rows, T positions, M = B T, K in, N out, n adapters, r the largest rank of a layer,
V vocabulary, D model width, t tokens with rows of their own.

Every layer has the factors of all adapters, one below another, and computes with two products for
the whole batch, whatever adapters its rows have:

    low = x A^T             (M, n r)   each row with every adapter
    low = low * share       (B, n r)   scale * alpha / r for the row's own adapter, 0 elsewhere
    y   = x W^T + low B     (M, N)

At ranks this small the products with adapters that a row does not have cost less than gathering
its own: that copies factors, and sorting rows by adapter makes two products an adapter out of two
(`python -m benchmarks.adapters`). On a GPU the kernels in `lora/kernels/gathered.py` read a row's
own factors where they lie. Rows that all have one adapter, as every prompt does, take its products
alone. Source: Punica (arXiv:2310.18547), section 4, for the gathered product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.device import has_fast_matmul
from common.tensor_file import read_headers
from lora.adapter import BASE_COPIES, WEIGHTS, load_adapter, read_config
from lora.config import EMBEDDING, HEAD
from lora.embedding import NewTokens, NewTokensEmbedding, NewTokensHead, embedding_scale
from lora.implementations import resolve_impl
from lora.inject import replace_module
from lora.layer import LoRALinear
from lora.wrapped import WrappedLayer

MAX_SCALE = 4.0  # of a row's adapter; what it learned is at 1, and far above it is noise
BASE = -1  # the adapter number of a row that has none


@dataclass(frozen=True)
class Row:
    """What a row of a batch is computed with: an adapter's name, or None for the base alone.

    scale: 1 is the adapter as it was trained, 0 the base. Raises: ValueError outside [0, 4].
    """

    adapter: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= MAX_SCALE:
            raise ValueError(
                f"scale of an adapter: expected 0 to {MAX_SCALE:g}, got {self.scale}; give 1 for "
                "the adapter as it was trained"
            )


class Adapters:
    """The adapters of one model, and which of them each row of the next forward pass uses.

    Its layers ask it; `use` is called by whoever changes the batch.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names, self.device = tuple(names), device
        self.use([Row()])

    def use(self, rows: Sequence[Row]) -> None:
        """Sets the rows of the coming passes, in the batch's order.

        Raises: KeyError for a name that is none.
        """
        numbers = {name: number for number, name in enumerate(self.names)}
        # An adapter at scale 0 is the base to the last bit, and costs nothing.
        chosen = [
            (numbers[row.adapter], row.scale) if row.adapter and row.scale else (BASE, 0.0)
            for row in rows
        ]
        # The one adapter and scale that all rows share: plain products then do.
        self.shared = chosen[0] if len(set(chosen)) == 1 else None
        self.index = torch.tensor([number for number, _ in chosen], device=self.device)  # (B,)
        self.scale = torch.tensor([scale for _, scale in chosen], device=self.device)  # (B,)
        self._shares: dict[tuple[tuple[int, tuple[float, ...]], ...], Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    def share(self, layout: tuple[tuple[int, tuple[float, ...]], ...]) -> Tensor:
        """The factor of each column of `low`, (B, sum of n r): the row's own scale, or 0.

        layout: for each linear of a group its rank r and the n scalings of its adapters.
        """
        # Most layers of a model have one layout, and a batch stays the same for many steps.
        if layout not in self._shares:
            own = self.index[:, None] == torch.arange(len(self.names), device=self.device)
            scaled = own * self.scale[:, None]  # (B, n)
            parts = [
                (scaled * torch.tensor(scalings, device=self.device)).repeat_interleave(rank, 1)
                for rank, scalings in layout
            ]
            self._shares[layout] = torch.cat(parts, dim=1)
        return self._shares[layout]

    def token_rows(self, table: "ManyTokens") -> Tensor:
        """The rows (B, t, D) that replace some tokens' in each row of the batch, in its dtype."""
        if id(table) not in self._rows:
            # `lerp` gives its ends exactly: the base at 0, the trained row at 1.
            mixed = torch.lerp(table.base, table.rows[self.index], self.scale[:, None, None])
            self._rows[id(table)] = mixed.to(table.dtype)
        return self._rows[id(table)]


class ManyLinear(nn.Module):
    """A frozen linear with the factors of all adapters: x (B, T, K) -> (B, T, N)."""

    a: Tensor
    b: Tensor
    scalings: Tensor

    def __init__(
        self, base: nn.Linear, factors: Sequence[LoRALinear | None], adapters: Adapters
    ) -> None:
        """factors: each adapter's layer, None where it leaves this linear as it is."""
        super().__init__()
        weight = base.weight
        self.base, self.adapters = base, adapters
        self.impl, _ = resolve_impl("auto", weight.device, weight.dtype)
        # A CPU without 16-bit products takes the low-rank path in float32, as one adapter does.
        dtype = weight.dtype if has_fast_matmul(weight) else torch.float32
        rank = max(layer.lora_A.shape[0] for layer in factors if layer is not None)
        # Smaller ranks are filled up with zeros, which add nothing.
        a = weight.new_zeros(len(factors), rank, base.in_features, dtype=dtype)
        b = weight.new_zeros(len(factors), rank, base.out_features, dtype=dtype)
        for number, layer in enumerate(factors):
            if layer is not None:
                a[number, : layer.lora_A.shape[0]] = layer.lora_A.detach()
                b[number, : layer.lora_B.shape[1]] = layer.lora_B.detach().T
        scalings = tuple(0.0 if layer is None else layer.scaling for layer in factors)
        self.layout = (rank, scalings)
        self.register_buffer("a", a, persistent=False)  # (n, r, K)
        self.register_buffer("b", b, persistent=False)  # (n, r, N)
        self.register_buffer("scalings", torch.tensor(scalings, device=a.device), persistent=False)
        self._joint: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_group(x, [self])[0]

    def forward_group(self, x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of linears that read the same x, this one among them."""
        outputs = [
            linear.base(x) if isinstance(linear, ManyLinear) else linear(x) for linear in linears
        ]
        pairs = zip(linears, outputs, strict=True)
        adapted = [(linear, y) for linear, y in pairs if isinstance(linear, ManyLinear)]
        shared = self.adapters.shared
        if shared is not None:
            for linear, y in adapted if shared[0] != BASE else ():
                linear.add_one_(y, x, *shared)
        elif self.impl == "triton":
            from lora.kernels.gathered import add_gathered_  # only where Triton is

            for linear, y in adapted:
                factors = (linear.a, linear.b, linear.scalings)
                add_gathered_(y, x, factors, self.adapters.index, self.adapters.scale)
        else:
            self._add_all_(x, adapted)
        return outputs

    def add_one_(self, y: Tensor, x: Tensor, number: int, scale: float) -> None:
        """y += scale * scaling x A^T B with the factors of adapter `number` for every row."""
        low = F.linear(_rows(x).to(self.a.dtype), self.a[number])
        _add_product_(y, low, self.b[number], scale * self.layout[1][number])

    def _add_all_(self, x: Tensor, adapted: Sequence[tuple["ManyLinear", Tensor]]) -> None:
        """The same for rows of several adapters: the products with all of them, and a mask."""
        linears = [linear for linear, _ in adapted]
        low = F.linear(_rows(x).to(self.a.dtype), linears[0].joint(linears))  # (M, sum of n r)
        share = self.adapters.share(tuple(linear.layout for linear in linears))
        if x.dim() == 3:
            low.view(*x.shape[:2], -1).mul_(share[:, None])
        else:
            low.mul_(share)
        parts = low.split([linear.a.shape[0] * linear.a.shape[1] for linear in linears], dim=1)
        for (linear, y), part in zip(adapted, parts, strict=True):
            _add_product_(y, part, linear.b.flatten(0, 1))

    def joint(self, linears: Sequence["ManyLinear"]) -> Tensor:
        """The A of all adapters of a group's linears, (sum of n r, K), made once."""
        if len(linears) == 1:
            return self.a.flatten(0, 1)
        if self._joint is None:
            self._joint = torch.cat([linear.a.flatten(0, 1) for linear in linears])
            sizes = [linear.a.shape[0] * linear.a.shape[1] for linear in linears]
            for linear, part in zip(linears, self._joint.split(sizes), strict=True):
                linear.a = part.view_as(linear.a)  # the same numbers are not stored twice
        return self._joint


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _add_product_(y: Tensor, low: Tensor, b: Tensor, factor: float = 1.0) -> None:
    """y (..., N) += factor * low (M, r) b (r, N) in place, rounded once."""
    flat = y.view(-1, y.shape[-1])
    if b.dtype == y.dtype:
        flat.addmm_(low, b, alpha=factor)
    else:
        flat.copy_(flat.float().addmm_(low, b, alpha=factor))


class ManyTokens(nn.Module):
    """The trained token rows of all adapters: ids (t,) of any adapter, rows (n + 1, t, D).

    An adapter that does not train a token has the base's row there; so has the last entry, which
    is number -1, the base.
    """

    ids: Tensor
    slots: Tensor
    base: Tensor
    rows: Tensor

    def __init__(self, weight: Tensor, trained: Sequence[NewTokens | None]) -> None:
        super().__init__()
        ids = sorted({id for rows in trained if rows is not None for id in rows.host_ids})
        where = torch.tensor(ids, device=weight.device)
        base = weight.detach()[where].float()  # (t, D)
        rows = base.repeat(len(trained) + 1, 1, 1)
        for number, own in enumerate(trained):
            if own is not None:
                places = [ids.index(id) for id in own.host_ids]
                rows[number, places] = own.rows.detach()
        slots = torch.full((weight.shape[0],), -1, device=weight.device)
        slots[where] = torch.arange(len(ids), device=weight.device)
        self.dtype = weight.dtype
        for name, value in {"ids": where, "slots": slots, "base": base, "rows": rows}.items():
            self.register_buffer(name, value, persistent=False)


class ManyEmbedding(nn.Module):
    """An embedding with each row's own token rows: ids (B, T) -> (B, T, D)."""

    def __init__(self, base: nn.Embedding, table: ManyTokens, adapters: Adapters) -> None:
        super().__init__()
        self.base, self.table, self.adapters = base, table, adapters

    @property
    def weight(self) -> Tensor:
        """The frozen weight, under the name that it has in an unwrapped layer."""
        return self.base.weight

    def forward(self, tokens: Tensor) -> Tensor:
        frozen: Tensor = self.base(tokens)
        if self.adapters.shared == (BASE, 0.0):
            return frozen
        rows = self.adapters.token_rows(self.table) * embedding_scale(self.base)  # (B, t, D)
        slots = self.table.slots[tokens]  # (B, T), -1 for all other tokens
        batch = torch.arange(len(rows), device=tokens.device)[:, None]
        replaced = rows[batch, slots.clamp(min=0)]
        return torch.where((slots >= 0)[..., None], replaced, frozen)


class ManyHead(nn.Module):
    """A head with each row's own token rows: (B, ..., D) -> (B, ..., V)."""

    def __init__(self, base: nn.Linear, table: ManyTokens, adapters: Adapters) -> None:
        super().__init__()
        self.base, self.table, self.adapters = base, table, adapters

    @property
    def weight(self) -> Tensor:
        """The frozen weight, under the name that it has in an unwrapped layer."""
        return self.base.weight

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.base(hidden)
        if self.adapters.shared == (BASE, 0.0):
            return logits
        rows = self.adapters.token_rows(self.table)  # (B, t, D)
        own = torch.bmm(hidden.view(len(rows), -1, hidden.shape[-1]), rows.transpose(1, 2))
        logits[..., self.table.ids] = own.view(*hidden.shape[:-1], -1)
        return logits


def add_adapters(model: nn.Module, folders: dict[str, Path]) -> Adapters:
    """Adds the adapters in `folders`, by name, to a plain Gemma2 in place; none is merged.

    Raises: FileNotFoundError, ValueError as `load_adapter`, naming the adapter; ValueError for one
    that changes the whole embedding or head, which rows of one batch cannot share.
    """
    adapters = Adapters(list(folders), model.get_parameter(f"model.{EMBEDDING}.weight").device)
    loaded = []
    for name, folder in folders.items():
        try:
            loaded.append(_load(model, Path(folder)))
        except ValueError as error:
            raise ValueError(f"adapter {name}: {error}") from error
    ends = {f"model.{EMBEDDING}": ManyEmbedding, HEAD: ManyHead}
    tables: dict[tuple[int, ...], ManyTokens] = {}
    for path in dict.fromkeys(path for layers in loaded for path in layers):
        base = model.get_submodule(path)
        found = [layers.get(path) for layers in loaded]
        if isinstance(base, nn.Linear) and path not in ends:
            linears = [layer if isinstance(layer, LoRALinear) else None for layer in found]
            replace_module(model, path, ManyLinear(base, linears, adapters))
            continue
        trained = [layer.trained if isinstance(layer, END_LAYERS) else None for layer in found]
        # A tied head shares the embedding's rows, and here its table.
        key = tuple(map(id, trained))
        if key not in tables:
            tables[key] = ManyTokens(base.get_parameter("weight"), trained)
        replace_module(model, path, ends[path](base, tables[key], adapters))  # type: ignore[arg-type]
    return adapters


END_LAYERS = (NewTokensEmbedding, NewTokensHead)


def _load(model: nn.Module, folder: Path) -> dict[str, WrappedLayer]:
    """An adapter's layers by the paths of what they wrap; the model is left as it was.

    Raises: FileNotFoundError; ValueError as `add_adapters`.
    """
    config = read_config(folder)
    file = folder / WEIGHTS
    keys = read_headers(file) if file.is_file() else ()  # its absence has a sentence further down
    copies = [key for key in keys if key.endswith(BASE_COPIES) and "lora_" not in key]
    is_whole = config.matches(f"model.{EMBEDDING}") or config.matches(HEAD)
    if is_whole or config.adapt == "course" or copies:
        raise ValueError(
            f"{folder}: expected LoRA on the linears and rows of some tokens, got one that adapts "
            f"the whole {EMBEDDING} or {HEAD}; serve it alone, merged by --merge"
        )
    load_adapter(model, folder, impl="reference")
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, WrappedLayer)
    }
    for name, layer in layers.items():
        replace_module(model, name, layer.base)
        # One number that is not finite would reach the other rows: 0 times infinity is no 0.
        if not all(tensor.isfinite().all() for tensor in layer.peft_tensors("").values()):
            raise ValueError(
                f"{file}: expected finite numbers, got others in {name}; train it again"
            )
    return layers
