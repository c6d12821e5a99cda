"""Decoding through the cache against full forward passes; sampling against its probabilities."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import model.generate as module
from model.attention import KVCache
from model.generate import Context, Sampling, choose, decode, generate
from model.step import Step
from model.transformer import Gemma2

PROMPTS = [
    [2, 17, 5, 40, 33, 8, 21],
    [2, 9],
    [2, 30, 31],
    [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21],
]
# A head of its own: the tied tiny model repeats its input.
SEED, UNTIED = 3, {"tie_word_embeddings": False}


@pytest.fixture(params=["gemma2", "gemma3"])
def family(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both."""
    return str(request.param)


def greedy(model: Gemma2, prompt: list[int], steps: int) -> list[int]:
    """The most probable ids by full forward passes, without a cache."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("window", [3, 5, 40])
def test_a_batch_equals_each_prompt_alone_and_full_forward_passes(
    make_model: Callable[..., Gemma2], window: int
) -> None:
    """12 steps from lengths 2 to 12: every row crosses the window's edge, at different steps."""
    model = make_model(seed=SEED, sliding_window=window, **UNTIED)
    truth = [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert generate(model, PROMPTS, 12, ()) == truth
    assert [generate(model, [prompt], 12, ())[0] for prompt in PROMPTS] == truth
    assert len({id for row in truth for id in row}) > 5  # no model that says one thing


def test_every_step_has_the_logits_of_a_full_forward_pass(
    make_model: Callable[..., Gemma2],
    monkeypatch: pytest.MonkeyPatch,
    relative: Callable[[Tensor, Tensor], float],
) -> None:
    model, seen = make_model(seed=SEED, **UNTIED), []

    def keep(logits: Tensor, **_: Any) -> Tensor:
        seen.append(logits.clone())
        return choose(logits, Sampling(), None)

    monkeypatch.setattr(module, "choose", keep)
    replies = generate(model, PROMPTS, 12, ())
    for row, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        truth = model(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1]
        assert relative(torch.stack(seen)[:, row], truth) < 1e-5


def test_a_batch_in_half_precision_is_the_prompt_alone(make_model: Callable[..., Gemma2]) -> None:
    model = make_model(seed=SEED, dtype=torch.bfloat16)
    assert [generate(model, [prompt], 6, ())[0] for prompt in PROMPTS[:2]] == generate(
        model, PROMPTS[:2], 6, ()
    )


def test_a_stop_id_ends_its_row_only(make_model: Callable[..., Gemma2]) -> None:
    model = make_model(seed=SEED, **UNTIED)
    whole = [greedy(model, prompt, 12) for prompt in PROMPTS]
    stop = whole[0][3]
    ends = [row.index(stop) + 1 if stop in row else 12 for row in whole]
    assert len(set(ends)) > 1
    assert generate(model, PROMPTS, 12, [stop]) == [
        row[:end] for row, end in zip(whole, ends, strict=True)
    ]


def test_none_after_the_end_and_no_step_too_many(make_model: Callable[..., Gemma2]) -> None:
    model = make_model(seed=SEED, **UNTIED)
    first, second = greedy(model, PROMPTS[0], 12), greedy(model, PROMPTS[1], 12)
    steps = list(decode(model, PROMPTS[:2], 12, [first[0]]))
    assert steps[0][0] == first[0] and all(ids[0] is None for ids in steps[1:])
    expected = second[: second.index(first[0]) + 1] if first[0] in second else second
    assert [ids[1] for ids in steps] == expected
    assert list(decode(model, [PROMPTS[0]], 12, [first[0]])) == [[first[0]]]
    assert len(list(decode(model, [PROMPTS[0]], 3, []))) == 3


def test_the_last_position_can_be_used_but_no_further(make_model: Callable[..., Gemma2]) -> None:
    model = make_model(max_position_embeddings=10)
    assert generate(model, [[2] * 6], 4, ())[0] == greedy(model, [2] * 6, 4)
    with pytest.raises(ValueError, match="7 tokens and 4 new ones exceed the model's 10 positions"):
        generate(model, [[2], [2] * 7], 4, ())


@pytest.mark.parametrize(("prompts", "new"), [([], 1), ([[]], 1), ([[2], []], 1), ([[2]], 0)])
def test_empty_prompts_and_no_new_tokens_are_refused(
    make_model: Callable[..., Gemma2], prompts: list[list[int]], new: int
) -> None:
    with pytest.raises(ValueError):
        generate(make_model(), prompts, new, ())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_forbidden_ids_never_appear(make_model: Callable[..., Gemma2], temperature: float) -> None:
    model = make_model(seed=SEED, **UNTIED)
    forbidden = tuple(sorted({id for prompt in PROMPTS for id in greedy(model, prompt, 12)}))
    replies = generate(model, PROMPTS, 12, (), Sampling(temperature, forbidden=forbidden))
    assert not {id for reply in replies for id in reply} & set(forbidden)


class Wish:
    """A guide that lets one sequence of ids come, and notes what did."""

    def __init__(self, wanted: list[int]) -> None:
        self.wanted, self.taken = wanted, list[int]()

    def accepts(self, id: int) -> bool:
        return id in self.allowed()

    def allowed(self) -> list[int]:
        return [self.wanted[len(self.taken)]]

    def advance(self, id: int) -> None:
        self.taken.append(id)


def test_each_row_has_a_guide_of_its_own(make_model: Callable[..., Gemma2]) -> None:
    """Rows end at different steps, so that they change their places in the batch."""
    model = make_model(seed=SEED, **UNTIED)
    guides = [Wish(ids) for ids in ([9, 1], [5, 6, 7, 8, 1], [4, 3, 1])]
    replies = generate(model, PROMPTS, 12, [1], guides=[guides[0], None, *guides[1:]])
    assert replies[0] == guides[0].wanted and replies[2:] == [g.wanted for g in guides[1:]]
    assert [guide.taken for guide in guides] == [guide.wanted for guide in guides]
    assert replies[1] == generate(model, [PROMPTS[1]], 12, [1])[0]


def test_the_model_goes_on_from_what_the_guide_chose(make_model: Callable[..., Gemma2]) -> None:
    class First(Wish):
        def accepts(self, id: int) -> bool:
            return bool(self.taken) or super().accepts(id)

    model = make_model(seed=SEED, **UNTIED)
    reply = generate(model, [PROMPTS[0]], 6, (), guides=[First([44])])[0]
    assert reply == [44, *greedy(model, [*PROMPTS[0], 44], 5)]


def test_choosing_leaves_the_logits_as_they_are() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert choose(logits, Sampling(forbidden=(2,)), None).item() == 1 and logits[0, 2] == 3.0


def test_seeds_reproduce(make_model: Callable[..., Gemma2]) -> None:
    model = make_model(seed=SEED, **UNTIED)
    one, two, other = (
        generate(model, PROMPTS, 12, (), Sampling(1.0, seed=seed)) for seed in (7, 7, 8)
    )
    assert one == two != other
    state = torch.get_rng_state()
    generate(model, PROMPTS, 3, (), Sampling(1.0))
    assert torch.equal(state, torch.get_rng_state())  # a generator of its own


LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.55, 0.01])
def test_samples_follow_the_probabilities(temperature: float, top_p: float) -> None:
    """Chi-squared against the renormalised smallest set that holds p."""
    probabilities = torch.softmax(LOGITS.double() / temperature, 0)
    kept = next(k for k in range(1, 7) if k == 6 or probabilities[:k].sum() >= top_p)
    expected = probabilities[:kept] / probabilities[:kept].sum()
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # unsorted ids
    number = 20_000
    sampling = Sampling(temperature, top_p)
    ids = choose(LOGITS[order].expand(number, 6), sampling, torch.Generator().manual_seed(1))
    counts = torch.bincount(order[ids], minlength=6).double()
    assert counts[kept:].sum() == 0
    chi_squared = ((counts[:kept] - number * expected) ** 2 / (number * expected)).sum().item()
    assert chi_squared < 25  # five degrees of freedom at most: exceeded once in 7,000 draws


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    ids = choose(10 * LOGITS[None], Sampling(temperature, 0.9), torch.Generator().manual_seed(0))
    assert ids.item() == 0


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, 1.1), (1, math.nan), (1, -0.5)],
)
def test_impossible_settings_are_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match="got"):
        Sampling(temperature, top_p)


@pytest.mark.parametrize("keywords", [{"top_k": -1}, {"min_p": 1.1}, {"min_p": math.nan}])
def test_so_are_impossible_sets(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        Sampling(1.0, **keywords)


@pytest.mark.parametrize("window", [3, 5, 40])
@pytest.mark.parametrize("prefill", [2, 512])
def test_a_conversation_in_one_cache_equals_each_prompt_anew(
    make_model: Callable[..., Gemma2],
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    prefill: int,
) -> None:
    """Four turns, the third other than what is stored; each crosses the window's edge."""
    monkeypatch.setattr(module, "CACHE_STEP", 8)  # it grows on the way
    monkeypatch.setattr(module, "PREFILL", prefill)
    model, other = (make_model(seed=SEED, sliding_window=window, **UNTIED) for _ in range(2))
    computed: list[int] = []
    hidden = model.hidden

    def count(tokens: Tensor, **keywords: Any) -> Tensor:
        computed.append(tokens.shape[1])
        return hidden(tokens, **keywords)

    monkeypatch.setattr(model, "hidden", count)
    context, ids, known = Context(), [2, 17, 5], 0
    for turn, more in enumerate(([40, 33], [8, 21, 9, 30], [31], [11, 12, 13])):
        if turn == 2:
            ids, known = [*ids[:-3], 50, 51], len(ids) - 3
        ids += more
        computed.clear()
        steps = decode(model, [ids], 6, (), context=context)
        reply = [id for (id,) in steps if id is not None]
        assert reply == greedy(other, ids, 6)
        # Each id once; the reply's last one is not computed, since nothing has followed it yet
        assert sum(computed) == len(ids) - known + 5
        ids = [*ids, *reply]
        known = len(ids) - 1
        assert context.ids == ids[:-1]


@pytest.mark.parametrize(
    ("keywords", "kept"),
    [({"top_k": 2}, 2), ({"min_p": 0.3}, 3), ({"top_k": 4, "min_p": 0.3, "top_p": 0.4}, 1)],
)
def test_top_k_and_min_p_leave_out_the_rest(keywords: dict[str, Any], kept: int) -> None:
    sampling = Sampling(1.0, **keywords)
    ids = choose(LOGITS.expand(2000, 6), sampling, torch.Generator().manual_seed(1))
    assert set(ids.tolist()) == set(range(kept))


class Waits(TorchDispatchMode):
    """Counts what would have to wait for a GPU: values that the host reads."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        self.count += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


def test_a_step_keeps_its_tensors_and_asks_the_device_nothing(
    make_model: Callable[..., Gemma2],
) -> None:
    model = make_model(seed=SEED, **UNTIED).eval()
    sampling, cache = Sampling(forbidden=(3, 4)), KVCache(model.config, 2, 12, "cpu", torch.float32)
    step = Step(
        model,
        cache,
        torch.tensor([[3], [3]]),
        partial(choose, sampling=sampling, generator=None),
        is_fixed=True,
    )
    places = [step.ids.data_ptr(), step.positions.data_ptr(), cache.keys[0].data_ptr()]
    with torch.no_grad(), Waits() as waits:
        step.begin(model.hidden(torch.tensor([[5, 6, 7]] * 2), cache=cache)[:, -1])
        before = waits.count
        for _ in range(4):
            step()
        assert waits.count == before
    assert step.positions.tolist() == [[7], [7]]
    assert places == [step.ids.data_ptr(), step.positions.data_ptr(), cache.keys[0].data_ptr()]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_replayed_steps_write_what_eager_ones_do(
    make_model: Callable[..., Gemma2], monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """The bookkeeping around a graph, whose replay is here the recorded call itself."""
    model, captures = make_model(seed=SEED, **UNTIED).eval(), []

    def record(call: Callable[[], None]) -> Callable[[], None]:
        captures.append(call)
        return call

    sampling = Sampling(temperature=temperature, seed=3)
    rows = generate(model, PROMPTS, 14, (), sampling)
    # Ends a row in the middle, and none before the capture.
    stops = [id for id in rows[0][4:10] if not any(id in row[:4] for row in rows)][:1]
    eager = generate(model, PROMPTS, 14, stops, sampling)
    monkeypatch.setattr("model.step.capture", record)
    monkeypatch.setattr(Step, "_can_capture", lambda _: True)
    assert generate(model, PROMPTS, 14, stops, sampling) == eager
    # Again where rows have left: the tensors of the batch are other ones then.
    assert len(captures) > 1 and 4 < min(map(len, eager)) < 14
