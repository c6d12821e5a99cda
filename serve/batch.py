"""One batch for all requests: a row joins between two decoding steps and leaves when it ends.

Separate from `model/generate.py`, whose rows begin together. Shapes: B rows that are running, V
vocabulary, D model width; a layer's cache is (slots, Hkv, positions, d), and its first B slots are
the batch, so that no step copies any of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora.rows import Adapters, Row
from model.attention import KVCache
from model.generate import Guide, Sampling, choose, guided
from model.transformer import Gemma2

# Positions by which the cache grows: attention sees all of it, filled or not, so not too many.
STEP = 64
# Rows of the batch times positions of its cache, at most. One position of one row is 106 kB for
# Gemma-2-2B in 16 bits, so that a full cache is 6.4 GB.
MAX_ENTRIES = 60_000


@dataclass(eq=False)
class Request:
    """What one row is to write, and what it has written.

    max_new_tokens is at most what the model's positions leave behind the prompt.
    """

    prompt: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int]
    row: Row = field(default_factory=Row)
    sampling: Sampling = field(default_factory=Sampling)
    guide: Guide | None = None
    written: list[int] = field(default_factory=list)

    @property
    def most_positions(self) -> int:
        return len(self.prompt) + self.max_new_tokens


class SlotCache(KVCache):
    """A cache whose rows join and leave; row i of the batch is slot i."""

    def __init__(self, model: Gemma2) -> None:
        weight = model.model.embed_tokens.weight
        super().__init__(model.config, 0, STEP, weight.device, weight.dtype)
        self.slots = [*self.keys, *self.values]  # of each layer, room for more rows than there are
        self._show(0)

    def join(self, prompt: KVCache, length: int) -> None:
        """Appends the first `length` positions of a cache of one row as the last row."""
        count = len(self.rows)
        self.reserve_positions(length + 1)
        if count == self.slots[0].shape[0]:
            self.slots = [_larger(slot, 0, max(1, count)) for slot in self.slots]
        sources = (*prompt.keys, *prompt.values)
        for slot, source in zip(self.slots, sources, strict=True):
            slot[count, :, :length] = source[0, :, :length]
        self._show(count + 1)

    def leave(self, row: int) -> None:
        """Forgets a row; the last one takes its place."""
        last = len(self.rows) - 1
        for slot in self.slots if row < last else ():
            slot[row] = slot[last]
        self._show(last)
        if not last:  # a long conversation must not slow down all that come after it
            self.slots = [slot[:, :, :STEP].clone() for slot in self.slots]
            self.max_length = STEP
            self._show(0)

    def reserve_positions(self, length: int) -> None:
        """Makes room for `length` positions."""
        if length > self.max_length:
            more = -(-length // STEP) * STEP - self.max_length
            self.slots = [_larger(slot, 2, more) for slot in self.slots]
            self.max_length += more
            self._show(len(self.rows))

    def _show(self, count: int) -> None:
        layers = len(self.slots) // 2
        views = [slot[:count] for slot in self.slots]
        self.keys, self.values = views[:layers], views[layers:]
        self.rows = torch.arange(count, device=self.slots[0].device)[:, None]


def _larger(tensor: Tensor, dimension: int, more: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dimension] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dimension)


@dataclass(frozen=True)
class Written:
    """One new id of a request; `is_last` where its row has ended, by a stop id or by its limit."""

    request: Request
    id: int
    is_last: bool


class Batch:
    """The rows that are being decoded. Not for several threads at once."""

    def __init__(self, model: Gemma2, adapters: Adapters | None = None) -> None:
        self.model, self.adapters = model, adapters
        self.device = model.model.embed_tokens.weight.device
        self.clear()

    def clear(self) -> None:
        """Forgets every row."""
        self.requests: list[Request] = []
        self.generators: list[torch.Generator | None] = []
        self.cache = SlotCache(self.model)

    def __len__(self) -> int:
        return len(self.requests)

    def has_room(self, request: Request) -> bool:
        """True if the cache may become as large as this row could make it; an empty one may."""
        longest = max([request.most_positions, *(r.most_positions for r in self.requests)])
        return not self.requests or (len(self) + 1) * longest <= MAX_ENTRIES

    @torch.no_grad()
    def join(self, request: Request) -> Written:
        """Reads a prompt and adds its row; returns its first id."""
        weight = self.model.model.embed_tokens.weight
        length = len(request.prompt)
        prompt = KVCache(self.model.config, 1, length, weight.device, weight.dtype)
        self._use([request])
        tokens = torch.tensor([request.prompt], device=weight.device)
        hidden = self.model.hidden(tokens, cache=prompt)[:, -1]  # (1, D)
        self.cache.join(prompt, length)
        sampling, generator = request.sampling, None
        if sampling.temperature:
            generator = torch.Generator(weight.device).manual_seed(sampling.seed)
        self.requests.append(request)
        self.generators.append(generator)
        return self._choose(self.model.logits(hidden), [len(self) - 1])[0]

    @torch.no_grad()
    def step(self) -> list[Written]:
        """One new id for every row; a row that ends with it has left."""
        lengths = [len(request.prompt) + len(request.written) for request in self.requests]
        self.cache.reserve_positions(max(lengths))
        self._use(self.requests)
        ids = torch.tensor([[request.written[-1]] for request in self.requests], device=self.device)
        positions = torch.tensor(lengths, device=self.device)[:, None] - 1  # (B, 1)
        end = self.cache.max_length  # has room for all of them: the device need not be asked
        states = self.model.hidden(ids, positions=positions, cache=self.cache, end=end)
        hidden = states[:, 0]  # (B, D)
        return self._choose(self.model.logits(hidden), range(len(self)))

    def leave(self, request: Request) -> None:
        """Takes a row out, whatever it has written; one that has left already is no error."""
        if request in self.requests:
            row = self.requests.index(request)
            self.cache.leave(row)
            self.requests[row], self.generators[row] = self.requests[-1], self.generators[-1]
            self.requests.pop()
            self.generators.pop()

    def _use(self, requests: Iterable[Request]) -> None:
        rows = [request.row for request in requests]
        if self.adapters is not None and self.adapters.rows != rows:
            self.adapters.use(rows)

    def _choose(self, logits: Tensor, rows: Iterable[int]) -> list[Written]:
        """The next id of each of these rows, from logits (their number, V)."""
        written = []
        for place, row in enumerate(rows):
            request, generator = self.requests[row], self.generators[row]
            own = logits[place : place + 1]
            id = int(choose(own, request.sampling, generator))
            if request.guide is not None:
                id = guided(own, id, request.guide, request.sampling, generator)
            request.written.append(id)
            is_full = len(request.written) >= request.max_new_tokens
            written.append(Written(request, id, is_full or id in request.stop_ids))
        # After the last row has chosen: leaving moves another row into a row's place.
        for one in written:
            if one.is_last:
                self.leave(one.request)
        return written
