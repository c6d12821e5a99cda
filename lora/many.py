"""Several adapters over one base: each row of a batch with its own adapter, or with none.

Shapes: B rows, T positions, K in, N out, n adapters, r the largest rank of a layer, u adapters that
a batch uses and g the most rows of one of them, V vocabulary, D model width, t tokens with rows of
their own. `lora/rows.py` says which adapter a row has.

Every layer holds the factors of all adapters in one stack. A batch's rows are put together by
adapter, a short group filled up with a row whose share is 0, and two batched products serve all:

    low  = x[order] A^T       (u, g T, r)    x (B, T, K), order (u g,), A (u, r, K)
    low *= share              (u, g T, r)    a row's scale times alpha / r
    y[order] += low B         (u, g T, N)    B (u, r, N)

Gathering each row's own factors instead copies them at every step, and multiplying all rows with
all adapters under a mask costs n times the arithmetic, which a narrow model feels
(`python -m benchmarks.adapters`). On a GPU the kernels in `lora/kernels/gathered.py` read a row's
own factors where they lie. Rows that all have one adapter, as every prompt does, take its plain
products. Source: Punica (arXiv:2310.18547), section 4, for the gathered product.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.products import has_fast_matmul
from common.tensor_file import read_headers
from lora.adapter import BASE_COPIES, WEIGHTS, load_adapter, read_config
from lora.config import EMBEDDING, HEAD
from lora.embedding import NewTokens, NewTokensEmbedding, NewTokensHead, embedding_scale
from lora.implementations import resolve_impl
from lora.inject import replace_module
from lora.layer import LoRALinear
from lora.rows import BASE, Adapters, Operands
from lora.wrapped import WrappedLayer


class ManyLinear(nn.Module):
    """A frozen linear with the factors of all adapters: x (B, T, K) -> (B, T, N)."""

    def __init__(
        self, base: nn.Linear, factors: Sequence[LoRALinear | None], adapters: Adapters
    ) -> None:
        """factors: each adapter's layer, None where it leaves this linear as it is."""
        super().__init__()
        weight = base.weight
        self.base, self.adapters = base, adapters
        self.impl, _ = resolve_impl("auto", weight.device, weight.dtype)
        # A CPU without fast 16-bit products takes the low-rank path in float32, as elsewhere.
        dtype = weight.dtype if has_fast_matmul(weight) else torch.float32
        self.rank = max(layer.lora_A.shape[0] for layer in factors if layer is not None)
        # Smaller ranks are filled up with zeros, which add nothing.
        a = weight.new_zeros(len(factors), self.rank, base.in_features, dtype=dtype)
        b = weight.new_zeros(len(factors), self.rank, base.out_features, dtype=dtype)
        for number, layer in enumerate(factors):
            if layer is not None:
                a[number, : layer.lora_A.shape[0]] = layer.lora_A.detach()
                b[number, : layer.lora_B.shape[1]] = layer.lora_B.detach().T
        self.scalings = [0.0 if layer is None else layer.scaling for layer in factors]
        # Plain attributes: the model is where it will run, and Module looks buffers up slowly.
        self.a, self.b = a, b  # (n, r, K), (n, r, N)
        self.scaling = torch.tensor(self.scalings, device=a.device)  # (n,)
        self._joint: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_group(x, [self])[0]

    def forward_group(self, x: Tensor, linears: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of linears that read the same x, this one among them."""
        outputs = [
            linear.base(x) if isinstance(linear, ManyLinear) else linear(x) for linear in linears
        ]
        shared = self.adapters.shared
        if shared is not None and shared[0] == BASE:
            return outputs
        pairs = zip(linears, outputs, strict=True)
        adapted = [(linear, y) for linear, y in pairs if isinstance(linear, ManyLinear)]
        if shared is not None:
            for linear, y in adapted:
                linear.add_one_(y, x, *shared)
        elif self.impl == "triton":
            from lora.kernels.gathered import add_gathered_  # only where Triton is

            for linear, y in adapted:
                factors = (linear.a, linear.b, linear.scaling)
                add_gathered_(y, x, factors, self.adapters.index, self.adapters.scale)
        else:
            self.add_all_(x, adapted)
        return outputs

    def add_one_(self, y: Tensor, x: Tensor, number: int, scale: float) -> None:
        """y += scale * scaling x A^T B with the factors of adapter `number` for every row."""
        low = F.linear(x.reshape(-1, x.shape[-1]).to(self.a.dtype), self.a[number])
        flat, factor = y.view(-1, y.shape[-1]), scale * self.scalings[number]
        if low.dtype == y.dtype:
            flat.addmm_(low, self.b[number], alpha=factor)
        else:
            # Added in float32 and rounded once: a 16-bit term would lose digits before the sum
            flat.copy_(flat.float().addmm_(low, self.b[number], alpha=factor))

    def add_all_(self, x: Tensor, adapted: Sequence[tuple["ManyLinear", Tensor]]) -> None:
        """The same for rows of several adapters, in the equations at the top of this file."""
        operands = self.adapters.operands.get(id(self)) or self._prepare(
            [linear for linear, _ in adapted]
        )
        assert self.adapters.grouping is not None
        order = self.adapters.grouping.order
        count, size, _, width = operands.share.shape
        rows = x if order is None else x.index_select(0, order)  # (u g, T, K)
        low = torch.bmm(rows.view(count, -1, x.shape[-1]).to(operands.a.dtype), operands.a)
        low.view(count, size, -1, width).mul_(operands.share)
        parts = zip(adapted, operands.b, low.split(operands.ranks, dim=2), strict=True)
        for (_, y), b, part in parts:
            if order is None and b.dtype == y.dtype:
                y.view(count, -1, y.shape[-1]).baddbmm_(part, b)
                continue
            own = torch.bmm(part, b).view(-1, *y.shape[1:])  # (u g, T, N)
            if order is None:
                y.copy_(y + own)
            elif b.dtype == y.dtype:
                y.index_add_(0, order, own)
            else:
                y.copy_(y.float().index_add_(0, order, own))

    def _prepare(self, linears: Sequence["ManyLinear"]) -> Operands:
        """What the batch's rows need of a group's linears, kept until the rows change."""
        adapters, grouping = self.adapters, self.adapters.grouping
        assert grouping is not None
        ranks = [linear.rank for linear in linears]
        if self._joint is None:
            self._joint = self.a
            if len(linears) > 1:
                self._joint = torch.cat([linear.a for linear in linears], dim=1)
                for linear, part in zip(linears, self._joint.split(ranks, dim=1), strict=True):
                    linear.a = part  # the same numbers are not stored twice
        scalings = [
            adapters.used(linear.scaling)[:, None, None].expand(-1, 1, linear.rank)
            for linear in linears
        ]
        share = torch.cat(scalings, dim=2) * grouping.scale[..., None]  # (u, g, sum of r)
        a = adapters.used(self._joint).transpose(1, 2)
        b = [adapters.used(linear.b) for linear in linears]
        adapters.operands[id(self)] = Operands(a, share[:, :, None], ranks, b)
        return adapters.operands[id(self)]


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

    def for_batch(self, adapters: Adapters) -> Tensor:
        """The rows (B, t, D) that replace the tokens' in each row of the batch."""
        if id(self) not in adapters.token_rows:
            # `lerp` gives its ends exactly: the base at 0, the trained row at 1.
            scale = adapters.scale[:, None, None]
            mixed = torch.lerp(self.base, self.rows[adapters.index], scale)
            adapters.token_rows[id(self)] = mixed.to(self.dtype)
        return adapters.token_rows[id(self)]


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
        rows = self.table.for_batch(self.adapters) * embedding_scale(self.base)  # (B, t, D)
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
        rows = self.table.for_batch(self.adapters)  # (B, t, D)
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
        replace_module(model, path, ends[path](base, tables[key], adapters))
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
