"""What only a card shows: every kernel against float64 at real shapes, and what is built of them.

Skipped without a CUDA card. Everywhere the measure is the error of plain PyTorch in the same dtype:
a kernel may be twice as far from the truth. `python -m benchmarks.gpu` runs this first.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.packing import Batch
from lora.config import LoRAConfig
from lora.inject import add_lora, trainable_parameters
from lora.kernels.tiles import supported
from model.attention_flex import FlexAttention
from model.attention_tiles import TiledAttention, document_spans
from model.config import Gemma2Config
from model.fused import geglu, rms_norm, rotary_tables, rotate
from model.generate import Sampling, decode, generate
from model.loss import supervised_loss
from model.step import EAGER_STEPS
from model.transformer import Gemma2
from train import make_optimizer
from training.run import StepLoss


def has_card() -> bool:
    """A card with tensor cores for bf16; the interpreter would run the kernels on the CPU."""
    if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return False
    return supported(torch.cuda.get_device_capability())[0]


pytestmark = pytest.mark.skipif(not has_card(), reason="no CUDA card of sm_80 or newer")
BF16, FP16 = torch.bfloat16, torch.float16


class Found(NamedTuple):
    """One result three times: by the kernel, by plain PyTorch in the same dtype, in float64."""

    ours: Tensor
    plain: Tensor
    truth: Tensor


def error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|, in float64 on the CPU."""
    value, truth = value.detach().cpu().double(), truth.detach().cpu().double()
    return ((value - truth).norm() / truth.norm()).item()


def assert_close(results: dict[str, Found]) -> None:
    """Names everything that is more than twice as far from the truth as plain PyTorch is."""
    far = {}
    for name, found in results.items():
        ours, plain = error(found.ours, found.truth), error(found.plain, found.truth)
        print(f"{name}: {ours:.1e}, plain PyTorch {plain:.1e}")
        # Sums in float32 on both sides differ by their order; one number may be right by chance.
        floor = 1e-6 if found.truth.numel() > 1 else 1e-3
        if not ours <= 2 * plain + floor:
            far[name] = (ours, plain)
    assert not far


def on_card(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


# Gemma-2-2B's linears as training meets them: q, k, v together, gate, down in a short batch; a rank
# that fills no tile; and the largest.
CASES = [
    (8192, 2304, 2048, 48, 0.05, BF16),
    (8192, 2304, 9216, 16, 0.0, BF16),
    (1500, 9216, 2304, 16, 0.05, BF16),
    (37, 2304, 1024, 8, 0.05, FP16),
    (2048, 2304, 9216, 192, 0.05, BF16),
]


@pytest.mark.parametrize(("M", "K", "N", "R", "p", "dtype"), CASES)
def test_every_kernel_is_as_close_to_float64_as_plain_products(
    M: int, K: int, N: int, R: int, p: float, dtype: torch.dtype
) -> None:
    from lora.kernels import steps

    seed = torch.tensor([2**61 + 12345])
    x, dy, y, dx = (on_card(M, width, dtype=dtype) for width in (K, N, N, K))
    a, b, scale = on_card(R, K) / K**0.5, on_card(N, R), torch.rand(R, device="cuda") + 0.5
    keep = steps.keep_mask(x, p, seed).double() / (1.0 - p)
    assert abs((keep > 0).double().mean().item() - (1 - p)) < 0.01
    a_low, b_low = a.to(dtype).double(), b.to(dtype).double()
    dropped, kept = x.double() * keep, keep.to(dtype)

    s = steps.shrink(x, a, scale, p, seed)
    ds, db = steps.expand_backward(dy, b, s, 2.0)
    found = {
        "shrink": Found(
            s, (x * kept) @ a.to(dtype).T * scale.to(dtype), dropped @ a_low.T * scale.double()
        ),
        "ds": Found(ds, dy @ b.to(dtype) * 2, 2 * dy.double() @ b_low),
        "db": Found(db, dy.T @ s, dy.double().T @ s.double()),
    }
    expanded = y.clone()
    steps.expand_(expanded, s, b)
    truth = y.double() + s.double() @ b_low.T
    found["expand"] = Found(expanded, y + s @ b.to(dtype).T, truth)
    plain = dx + kept * (ds @ a.to(dtype))
    truth = dx.double() + keep * (ds.double() @ a_low)
    da = steps.shrink_backward_(dx, ds, x, a, p, seed)
    found["dx"] = Found(dx, plain, truth)
    found["da"] = Found(da, ds.T @ (x * kept), ds.double().T @ dropped)
    assert_close(found)


def test_a_kept_form_gives_the_bits_of_a_fresh_launch() -> None:
    """Aligned and not, with seeds that 16 divides and others: no form serves what it is not for."""
    from lora.kernels import launch, steps

    whole, a, scale = on_card(257, 513, dtype=BF16), on_card(16, 512), torch.ones(16, device="cuda")
    views = [whole[:256, :512].contiguous(), whole[1:, :512], whole[:256, 1:]]
    seeds = [torch.tensor([2**61 + n]) for n in (0, 1, 16, 7)]
    fresh = []
    for x in views:
        for seed in seeds:
            launch._forms.clear()
            fresh.append(steps.shrink(x, a, scale, 0.05, seed))
    for _ in range(2):
        kept = [steps.shrink(x, a, scale, 0.05, seed) for x in views for seed in seeds]
        assert all(map(torch.equal, kept, fresh))


@pytest.mark.parametrize(("M", "K"), [(4096, 2304), (300, 9216)])
def test_all_kernels_drop_the_same_elements(M: int, K: int) -> None:
    """Ones for x, and factors that pick single elements: the results are the mask itself."""
    from lora.kernels import steps

    p, seed, R = 0.25, torch.tensor([2**40 + 7]), 16
    x = torch.ones(M, K, device="cuda", dtype=BF16)
    mask = steps.keep_mask(x, p, seed)
    columns = torch.randperm(K, device="cuda")[:R]
    a = F.one_hot(columns, K).float()
    s = steps.shrink(x, a, torch.ones(R, device="cuda"), p, seed)
    assert torch.equal(s > 0, mask[:, columns])
    rows = torch.randperm(M, device="cuda")[:R]
    ds, dx = F.one_hot(rows, M).T.to(BF16).contiguous(), torch.zeros_like(x)
    da = steps.shrink_backward_(None, ds, x, a, p, seed)
    assert torch.equal(da > 0, mask[rows])
    steps.shrink_backward_(dx, torch.ones_like(ds), x, torch.ones_like(a), p, seed)
    assert torch.equal(dx > 0, mask)


@pytest.mark.parametrize(
    ("T", "window", "head_width"),
    [(2048, None, 256), (1500, 300, 256), (40, None, 256), (1500, 300, 64)],
)
def test_flexattention_is_the_loop_over_documents(
    T: int, window: int | None, head_width: int
) -> None:
    documents = torch.stack([torch.arange(T) // 700, torch.arange(T) // (T // 3)])
    qkv = [on_card(2, T, heads, head_width) for heads in (8, 4, 4)]
    upstream, rule = on_card(2, T, 8, head_width), {"scale": head_width**-0.5, "cap": 50.0}
    loop = TiledAttention(document_spans(documents, 2, T))
    flex = FlexAttention.of(documents, window or T, torch.device("cuda"))
    results = []
    for attend, dtype in ((flex, BF16), (loop, BF16), (loop, torch.float64)):
        inputs = [x.to(BF16).to(dtype).requires_grad_() for x in qkv]
        query, keys, values = inputs
        out: Any = attend(4 * query, keys, values, window=window, **rule)
        results.append([out, *torch.autograd.grad(out, inputs, upstream.to(BF16).to(dtype))])
    names = ("out", "d_query", "d_keys", "d_values")
    assert_close({n: Found(*r) for n, r in zip(names, zip(*results, strict=True), strict=True)})


def test_norms_rotations_and_gated_products_compile_to_what_they_say() -> None:
    inputs = [on_card(2, 300, 4, 256) for _ in range(3)]
    tables = rotary_tables(torch.arange(300, device="cuda").expand(2, -1), 256, 10_000.0)

    def run(dtype: torch.dtype, device: str) -> dict[str, list[Tensor]]:
        x, y, up = (t.to(BF16).to(device, dtype).requires_grad_() for t in inputs)
        weight = x.detach()[0, 0, 0]
        outs = {
            "norm": rms_norm(x, weight, eps=1e-6, residual=y),
            "rotate": rotate(x, x[:, :, :2], *(t.to(device) for t in tables))[0],
            "geglu": geglu(x, y),
        }
        upstream = up.detach()
        return {
            name: [out, *torch.autograd.grad(out, (x, y), upstream, allow_unused=True)[:1]]
            for name, out in outs.items()
        }

    runs = run(BF16, "cuda"), run(BF16, "cpu"), run(torch.float32, "cpu")
    for name in runs[0]:
        triples = zip(*(found[name] for found in runs), strict=True)
        assert_close({f"{name} {i}": Found(*triple) for i, triple in enumerate(triples)})


CONFIG = Gemma2Config(32_000, 256, 640, 4, 4, 2, 64, sliding_window=128, query_pre_attn_scalar=64)


def model_of(config: Gemma2Config, dropout: float = 0.0) -> Gemma2:
    """A random model with LoRA whose B is not zero, float32, on the CPU."""
    torch.manual_seed(0)
    model = Gemma2(config)
    for name, p in model.named_parameters():
        p.data.normal_(std=0.3 if "norm" in name else p.shape[-1] ** -0.5)
    add_lora(model, LoRAConfig(rank=8, dropout=dropout, token_ids=(31_990, 31_999)))
    for name, p in trainable_parameters(model).items():
        if name.endswith("lora_B"):
            p.data.normal_(std=0.05)
    return model


def to_card(model: Gemma2) -> Gemma2:
    """A frozen bf16 base and float32 factors on the card, as `train.py` has them."""
    from lora.layer import LoRALinear

    for p in model.parameters():
        p.data = p.data.to("cuda", torch.float32 if p.requires_grad else BF16)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.impl = "triton"
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.cuda())
    return model


def batch_of(config: Gemma2Config) -> Batch:
    """Two packs of 256 tokens, the second of two documents, a third of them supervised."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, config.vocab_size, (2, 256), generator=generator)
    documents = torch.zeros(2, 256, dtype=torch.int64)
    documents[1, 100:] = 1
    positions = torch.arange(256).expand(2, -1).clone()
    positions[1, 100:] = torch.arange(156)
    targets = tokens.roll(-1, 1)
    targets[:, torch.arange(256) % 3 != 0] = -100
    targets[0, :3] = 31_999  # a trained row
    return Batch(tokens, positions, documents, targets)


@pytest.mark.parametrize("cap", [30.0, None])
def test_the_loss_is_cross_entropy_on_whole_logits(cap: float | None) -> None:
    model = to_card(model_of(replace(CONFIG, final_logit_softcapping=cap)))
    targets = batch_of(CONFIG).targets
    hidden = on_card(2, 256, 256).mul(3)
    rows = model.lm_head.get_parameter("trained.rows")

    def whole(dtype: torch.dtype) -> list[Tensor]:
        h = hidden.to(BF16).to(dtype).requires_grad_()
        weight = model.lm_head.weight.detach().to(dtype).clone()
        mine = rows.detach().to(BF16).to(dtype).requires_grad_()
        weight = weight.index_copy(0, torch.tensor([31_990, 31_999], device="cuda"), mine)
        z = (h @ weight.T).to(dtype if dtype == torch.float64 else torch.float32)
        z = z if cap is None else cap * torch.tanh(z / cap)
        loss = F.cross_entropy(z.flatten(0, 1), targets.flatten().cuda(), reduction="sum")
        return [loss, *torch.autograd.grad(loss, (h, mine))]

    h = hidden.to(BF16).requires_grad_()
    loss, _ = supervised_loss(model, h, targets)
    ours = [loss, *torch.autograd.grad(loss, (h, rows))]
    names = ("loss", "d_hidden", "d_rows")
    triples = zip(ours, whole(BF16), whole(torch.float64), strict=True)
    assert_close({n: Found(*t) for n, t in zip(names, triples, strict=True)})


def gradients_of(model: Gemma2, batch: Batch) -> dict[str, Tensor]:
    """The summed loss and every gradient, by name."""
    loss = StepLoss(model)(batch)
    named = trainable_parameters(model)
    grads = torch.autograd.grad(loss, list(named.values()))
    return {"loss": loss.detach(), **dict(zip(named, grads, strict=True))}


def test_a_whole_model_is_as_close_as_bf16_on_a_cpu() -> None:
    batch, cpu = batch_of(CONFIG), model_of(CONFIG)
    truth = gradients_of(cpu, batch)
    for p in cpu.parameters():
        p.data = p.data if p.requires_grad else p.data.to(BF16)
    plain = gradients_of(cpu, batch)
    ours = gradients_of(to_card(model_of(CONFIG)), batch)
    assert_close({name: Found(ours[name], plain[name], truth[name]) for name in truth})


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function from which on every wait of the host for the card raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_forward_and_backward_wait_for_nothing(no_waiting: Callable[[], None]) -> None:
    model, batch = to_card(model_of(CONFIG, dropout=0.1)).train(), batch_of(CONFIG)
    gradients_of(model, batch)  # compiles
    no_waiting()
    gradients_of(model, batch)


def test_two_runs_have_the_same_bits() -> None:
    found = []
    for _ in range(2):
        model = to_card(model_of(CONFIG, dropout=0.1)).train()
        optimizer = make_optimizer(model, 0.1)
        torch.manual_seed(3)
        for _ in range(3):
            StepLoss(model)(batch_of(CONFIG)).backward()
            optimizer.param_groups[0]["lr"] = 1e-3
            optimizer.step()
            optimizer.zero_grad()
        found.append(trainable_parameters(model))
    assert all(torch.equal(p, found[1][name]) for name, p in found[0].items())


def test_decoding_chooses_what_the_whole_forward_pass_would() -> None:
    model = to_card(model_of(CONFIG)).eval()
    prompts = [list(range(5, 45)), list(range(100, 117))]
    replies = generate(model, prompts, 12, (1,))
    for prompt, reply in zip(prompts, replies, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *reply]], device="cuda"))[0]
        for place, id in enumerate(reply):
            row = logits[len(prompt) - 1 + place]
            # bf16 in another order: the chosen token may be the second of two that are as good.
            assert row.max() - row[id] < 0.05


@pytest.mark.parametrize("has_adapter", [True, False])
def test_a_replayed_step_writes_what_an_eager_one_does(
    has_adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Gemma2(CONFIG).requires_grad_(False)
    model = to_card(model_of(CONFIG) if has_adapter else plain).eval()
    prompts = [list(range(5, 45)), list(range(100, 117)), [7, 8, 9]]
    captured = generate(model, prompts, 40, (1,), Sampling(forbidden=(3, 4)))
    monkeypatch.setattr("model.step.EAGER_STEPS", 10**6)
    assert captured == generate(model, prompts, 40, (1,), Sampling(forbidden=(3, 4)))


def test_a_replayed_step_waits_only_for_its_ids() -> None:
    model = to_card(model_of(CONFIG)).eval()
    steps = decode(model, [list(range(5, 45))], 20, (1,), Sampling(forbidden=(3, 4)))
    for _ in range(EAGER_STEPS + 3):  # captured, and replayed once
        next(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(4):
            next(steps)
    names = [event.name for event in profile.events()]
    assert names.count("cudaGraphLaunch") == 4 and "cudaLaunchKernel" not in names
    # One is the profiler's own.
    assert sum(name.startswith("cuda") and "Synchronize" in name for name in names) <= 5


def test_a_graph_replays_what_was_called() -> None:
    """Forward and backward of a group of linears, captured once."""
    from benchmarks.lora_cases import Case
    from benchmarks.lora_linear import run
    from benchmarks.timing import capture

    case = Case("block", 256, rank=16, dropout=0.0, device=torch.device("cuda"), dtype=BF16)
    groups: list[list[nn.Module]] = case.ours("triton")
    eager = run(case, groups, False)
    replay, captured = capture(lambda: run(case, groups, False))
    for tensor in captured:
        tensor.zero_()
    replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, eager, strict=True))
    assert all(x.abs().max() > 0 for x in captured)
