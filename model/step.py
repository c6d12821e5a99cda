"""One decoding step whose tensors stay where they are: run as written, on CUDA replayed as a graph.

Separate from the loop of `generate.py`, which decides what the chosen ids mean. Shapes: B rows, V
vocabulary, D model width.

An eager step of Gemma-2-2B launches some 1,700 kernels, for which the host needs many times as long
as the card does. Ids, positions and cache keep their place and size from step to step, so the whole
step is captured once and is one launch from then on; the host waits for the ids alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.attention import KVCache
from model.transformer import Gemma2

# Steps before the capture, which takes as long as some of them: a short reply is not worth it.
EAGER_STEPS = 2


class Step:
    """The next ids of B rows. `ids` (B, 1) are the last ones, `positions` (B, 1) where they belong.

    Both are overwritten by each step; whoever wants another id than the chosen one writes it into
    `ids`. The caller has seen to it that the cache has an entry for every position to come.
    """

    def __init__(
        self,
        model: Gemma2,
        cache: KVCache,
        positions: Tensor,
        choose: Callable[[Tensor], Tensor],
        *,
        is_fixed: bool,
    ) -> None:
        """choose: from logits (B, V) to ids (B,); is_fixed: whether a graph can repeat it."""
        self.model, self.cache, self.choose, self.is_fixed = model, cache, choose, is_fixed
        self.positions, self.ids = positions, torch.zeros_like(positions)
        self.num_eager = 0
        self.replay: Callable[[], None] | None = None

    def begin(self, hidden: Tensor) -> Tensor:
        """Logits (B, V) behind the prompts, from states (B, D); their ids are the first ones."""
        self.logits = self.model.logits(hidden)
        self.ids.copy_(self.choose(self.logits)[:, None])
        return self.logits

    def __call__(self) -> Tensor:
        """Logits (B, V) behind `ids`, which then are the next ones. The next step changes both."""
        if self.replay is not None:
            self.replay()
        elif self.num_eager >= EAGER_STEPS and self._can_capture():
            # What is compiled or allocated once has been, in the eager steps.
            self.replay = capture(self._run)
            self.replay()
        else:
            self._run()
            self.num_eager += 1
        if not self.is_fixed:
            self._advance()
        return self.logits

    def keep(self, rows: Tensor) -> None:
        """Forgets every row but these (int64, their indices)."""
        self.cache.keep(rows)
        self.ids, self.positions = self.ids[rows], self.positions[rows]
        self.num_eager, self.replay = 0, None  # a graph knows only the tensors of its capture

    def _run(self) -> None:
        # With an end from the host: asking the device for the largest position would be a wait.
        states = self.model.hidden(
            self.ids, positions=self.positions, cache=self.cache, end=self.cache.max_length
        )
        self.logits = self.model.logits(states[:, 0])
        if self.is_fixed:
            self._advance()

    def _advance(self) -> None:
        self.ids.copy_(self.choose(self.logits)[:, None])
        self.positions += 1

    def _can_capture(self) -> bool:
        # Sharded weights are gathered by hooks, and dropout's seeds drawn on the host.
        is_sharded = hasattr(self.model.model.embed_tokens.weight, "full_tensor")
        return self.ids.is_cuda and not is_sharded and not self.model.training


def capture(call: Callable[[], object]) -> Callable[[], None]:
    """`call` as one CUDA graph, which is recorded and not run: what replays it.

    A replay overwrites the results of the recorded call. What `call` compiles or allocates once it
    must have done before.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, as a server's, may go on to use the card.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay
