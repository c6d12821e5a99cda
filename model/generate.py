"""The decode loop, on ids only: prefill once, then one token per row and step through the cache.

Shapes: B rows, T prompt positions, V vocabulary. Rows of different lengths are padded on the right:
a padded entry of the cache lies in the future of its row's last token, so the causal mask hides it
until a new token overwrites it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from model.attention import KVCache
from model.step import Step
from model.transformer import Gemma2

# Below this the most probable token is taken: sampling would hardly ever take another, and a still
# smaller number could make the division infinite.
MIN_TEMPERATURE = 1e-6
# Above this all tokens are equally probable, and float32 has no number above 3.4e38.
MAX_TEMPERATURE = 1e6
# Ended rows are taken out of the batch once at most this share of its rows is still running; not
# one by one, because that copies the cache.
LEAVE_SHARE = 0.75
# Positions by which a conversation's cache grows, and those that one pass adds to it: its mask has
# an entry for each of them and each position of the cache.
CACHE_STEP, PREFILL = 256, 512


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature 0 takes the most probable one.

    `top_k` keeps that many tokens (0: all), `top_p` the smallest set that has this probability,
    `min_p` those with at least this share of the best one's probability; a token must pass all
    three. `forbidden` ids are never produced. Sources: "The Curious Case of Neural Text
    Degeneration" (arXiv:1904.09751), section 3.1; "Turning Up the Heat: Min-p Sampling"
    (arXiv:2407.01082), section 3.
    Raises: ValueError for a temperature outside [0, 1e6], a top_p outside (0, 1], a min_p outside
    [0, 1] or a negative top_k.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    forbidden: tuple[int, ...] = ()
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature must lie in [0, 1e6], got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], got {self.min_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")


class Guide(Protocol):
    """What may come next in one row; see `agent/guides.py`."""

    def accepts(self, id: int) -> bool:
        """True if this id may come next."""
        ...

    def allowed(self) -> Sequence[int]:
        """Every id that may, or some of them if one of these was refused too."""
        ...

    def advance(self, id: int) -> None:
        """Takes note of the id that was chosen."""
        ...


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """Next ids (B,) from logits (B, V), which stay as they are."""
    if sampling.forbidden:
        logits = logits.index_fill(-1, _on(logits.device, sampling.forbidden), float("-inf"))
    # Without a softmax: it would round two close logits to the same probability.
    if sampling.temperature < MIN_TEMPERATURE:
        return logits.argmax(-1)
    probabilities, ids = torch.softmax(logits / sampling.temperature, dim=-1).sort(
        dim=-1, descending=True
    )
    # A token stays while the mass before it is below p: the one that crosses p is kept.
    outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
    outside |= probabilities < sampling.min_p * probabilities[:, :1]
    if sampling.top_k:
        outside[:, sampling.top_k :] = True
    outside[:, 0] = False  # a p below float32's smallest number is 0 here, and would keep none
    picked = torch.multinomial(probabilities.masked_fill(outside, 0.0), 1, generator=generator)
    return ids.gather(1, picked)[:, 0]


# Kept, because a copy from the host would wait for a GPU at every step.
@lru_cache(maxsize=64)
def _on(device: torch.device, ids: tuple[int, ...]) -> Tensor:
    return torch.tensor(ids, device=device)


def guided(
    logits: Tensor, id: int, guide: Guide, sampling: Sampling, generator: torch.Generator | None
) -> int:
    """The id that was chosen from logits (1, V) if the guide takes it, or else another one.

    Asked about one id, a guide needs no mask of the vocabulary. Sampled or greedy, the result is
    as if all ids that are not allowed had been masked at once: x is drawn with probability p(x),
    or after a refusal, so with p(x) + (1 - P) p(x) / P = p(x) / P, P being that of all allowed.
    A guide may allow fewer after a refusal, as one whose arguments would have ended too early does.
    """
    while not guide.accepts(id):
        allowed = torch.tensor(guide.allowed(), device=logits.device)
        masked = torch.full_like(logits, float("-inf"))
        masked[:, allowed] = logits[:, allowed]
        id = int(choose(masked, sampling, generator))
    guide.advance(id)
    return id


class Context:
    """One conversation's cache, kept between its replies.

    `ids` are those whose keys and values it holds. A prompt that begins with them costs only what
    follows; where it differs from them, the cache is overwritten from there on.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: KVCache | None = None

    def extend(self, model: Gemma2, prompt: Sequence[int], room: int) -> Tensor:
        """The state (1, D) behind the prompt; afterwards there is room for as many ids more."""
        weight = model.model.embed_tokens.weight
        pairs = zip(self.ids, prompt[:-1], strict=False)  # the last one's state is always needed
        known = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        known = min(len(self.ids), len(prompt) - 1) if known is None else known
        # Rounded up, so that the next turns fit too: growing copies all of it.
        length = -(-(len(prompt) + room) // CACHE_STEP) * CACHE_STEP
        if self.cache is None:
            self.cache = KVCache(model.config, 1, length, weight.device, weight.dtype)
        elif self.cache.max_length < length:
            self.cache.grow(length)
        del self.ids[known:]
        while len(self.ids) < len(prompt):
            start = len(self.ids)
            part = prompt[start : start + PREFILL]
            tokens = torch.tensor([part], device=weight.device)
            positions = torch.arange(start, start + len(part), device=weight.device)[None]
            # Without positions these are all there are, which spares the mask over the cache.
            where = positions if start else None
            hidden = model.hidden(tokens, positions=where, cache=self.cache)  # (1, T, D)
            self.ids += part
        return hidden[:, -1]


# Not inference_mode: what FSDP2 allocates in a first pass could not be trained with later.
@torch.no_grad()
def decode(
    model: Gemma2,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    guides: Sequence[Guide | None] | None = None,
    context: Context | None = None,
) -> Iterator[list[int | None]]:
    """Yields, step by step, one new id per prompt, the stop id too; None for a row that has ended.

    guides: what may come next, for each prompt; None where anything may.
    context: of the only prompt, for a conversation that goes on.

    Raises: ValueError for an empty prompt or one that leaves no room below max_position_embeddings.
    """
    sampling = sampling or Sampling()
    _check_lengths([len(prompt) for prompt in prompts], max_new_tokens, model)
    device = model.model.embed_tokens.weight.device
    generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.temperature else None
    if context is None:
        hidden, position, cache = _prefill(model, prompts, max_new_tokens)
    else:
        hidden = context.extend(model, prompts[0], max_new_tokens)
        position = torch.tensor([[len(prompts[0])]], device=device)
        assert context.cache is not None
        cache = context.cache
    rows = list(range(len(prompts)))  # the prompts that are still in the batch
    running = set(rows)  # those of them that have not ended
    pick = partial(choose, sampling=sampling, generator=generator)
    step = Step(model, cache, position, pick, is_fixed=generator is None)
    logits = step.begin(hidden)  # (B, V)
    for number in range(1, max_new_tokens + 1):
        new = dict(zip(rows, step.ids[:, 0].tolist(), strict=True))  # the one wait for a GPU
        for place, row in enumerate(rows if guides else ()):
            guide = guides[row] if guides and row in running else None
            if guide is not None:
                taken = guided(logits[place : place + 1], new[row], guide, sampling, generator)
                if taken != new[row]:
                    step.ids[place] = new[row] = taken
        yield [new[row] if row in running else None for row in range(len(prompts))]
        running = {row for row in running if new[row] not in stop_ids}
        if not running or number == max_new_tokens:
            return
        if len(running) <= LEAVE_SHARE * len(rows):
            step.keep(torch.tensor([rows.index(row) for row in sorted(running)], device=device))
            rows = sorted(running)
        logits = step()
        if context is not None:
            context.ids += new.values()


def _prefill(
    model: Gemma2, prompts: Sequence[Sequence[int]], room: int
) -> tuple[Tensor, Tensor, KVCache]:
    """States (B, D) behind the prompts, positions (B, 1) of the next ids, and the cache."""
    weight = model.model.embed_tokens.weight
    device, lengths = weight.device, [len(prompt) for prompt in prompts]
    cache = KVCache(model.config, len(prompts), max(lengths) + room, device, weight.dtype)
    pad = model.config.pad_token_id
    padded = [[*prompt, *[pad] * (max(lengths) - len(prompt))] for prompt in prompts]
    # Only each row's last state is needed: the head on all of them would be (B, T, V) logits.
    hidden = model.hidden(torch.tensor(padded, device=device), cache=cache)  # (B, T, D)
    position = torch.tensor(lengths, device=device)[:, None]  # (B, 1)
    last = hidden[torch.arange(len(prompts), device=device), position[:, 0] - 1]  # (B, D)
    return last, position, cache


def generate(
    model: Gemma2,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    guides: Sequence[Guide | None] | None = None,
) -> list[list[int]]:
    """The new ids of each prompt, its stop id included where it was reached. See `decode`."""
    replies: list[list[int]] = [[] for _ in prompts]
    for ids in decode(model, prompts, max_new_tokens, stop_ids, sampling, guides):
        for reply, value in zip(replies, ids, strict=True):
            if value is not None:
                reply.append(value)
    return replies


def _check_lengths(lengths: list[int], max_new_tokens: int, model: Gemma2) -> None:
    if not lengths or min(lengths) < 1:
        raise ValueError("generate: every prompt needs at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    limit = model.config.max_position_embeddings
    if max(lengths) + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {max(lengths)} tokens and {max_new_tokens} new ones exceed the model's "
            f"{limit} positions; shorten the conversation or lower --max-new-tokens"
        )
