"""What several test files share: a fixed seed, few threads, and small random models whose every
weight matters."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TOKENIZER, make_adapter, time_rows
from scripted import LIMIT, TOOLS, Ask, Say, Script
from torch import Tensor, nn

import infer
import train
from agent import agent as loop
from benchmarks.small_run import SmallRun
from benchmarks.timing import write_rows
from benchmarks.tiny_base import tiny_config, write_tiny_base
from common.products import use_products
from data.tokenizer import Tokenizer
from model.config import Gemma2Config
from model.loader import save_gemma2
from model.transformer import Gemma2

# Every size differs from every other one, head_dim is not hidden / heads, and the window is shorter
# than the sequences.
TINY = Gemma2Config(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    max_position_embeddings=64,
    rope_theta=500.0,
    sliding_window=5,
    query_pre_attn_scalar=20,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=6.0,
)
# By family. Gemma 3: norms of queries and keys, no caps, two rotary bases, one full layer in three.
FAMILIES = {
    "gemma2": TINY,
    "gemma3": replace(
        TINY,
        model_type="gemma3_text",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        rope_theta=3000.0,
        rope_local_base_freq=100.0,
        rope_factor=4.0,
        sliding_window_pattern=3,
    ),
}


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only lose time to a second thread
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    use_products("bf16")  # what a program in an earlier test has chosen


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Fills every parameter with values of a useful size: norms and LoRA's B too, whose zeros would
    hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.dim() == 2 and "lora" not in name and not name.endswith("rows")
            std = 1.5 * parameter.shape[-1] ** -0.5 if is_matrix else 0.3
            parameter.copy_(values * std)


@pytest.fixture
def family() -> str:
    """The family of `make_model`; a file whose tests hold for both has a fixture of its own."""
    return "gemma2"


@pytest.fixture
def make_model(family: str) -> Callable[..., Gemma2]:
    """make_model(seed=0, dtype=torch.float32, **changes to the tiny configuration) -> Gemma2 with
    random weights."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Gemma2:
        model = Gemma2(replace(FAMILIES[family], **changes))
        randomize(model, seed)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def randomized() -> Callable[[nn.Module], None]:
    """The function `randomize`, for what is added to a model later (LoRA, token rows)."""
    return randomize


@pytest.fixture
def relative() -> Callable[[Tensor, Tensor], float]:
    """relative(ours, truth): largest difference, as a fraction of the truth's largest value."""
    return lambda ours, truth: (
        (ours.double() - truth.double()).abs().max() / truth.double().abs().max()
    ).item()


@pytest.fixture
def parity(
    relative: Callable[[Tensor, Tensor], float], request: pytest.FixtureRequest
) -> Callable[[str, Tensor, Tensor], float]:
    """parity(name, ours, truth): as `relative`; the worst of each name is printed at the end."""

    def measure(name: str, ours: Tensor, truth: Tensor) -> float:
        error = relative(ours, truth)
        request.node.user_properties.append(("parity", [name, error]))
        return error

    return measure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-rows", metavar="FILE", help="write the parity figures as rows")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints how far from Transformers and PEFT the worst figure of each kind is."""
    errors: dict[str, list[float]] = {}
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "parity":
                errors.setdefault(value[0], []).append(value[1])
    rows = [
        {"name": "parity", "what": name, "worst": max(found), "comparisons": len(found)}
        for name, found in sorted(errors.items())
    ]
    for row in rows:
        text = f"parity: {row['what']}: {row['worst']:.1e}, the worst of {row['comparisons']}"
        terminalreporter.write_line(text)
    path = config.getoption("--parity-rows")
    if path and rows:
        Path(path).unlink(missing_ok=True)
        write_rows(Path(path), rows, torch.device("cpu"))


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random base that a program loads in no time."""
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def small_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows of one call."""
    return time_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run of four steps, with a checkpoint after each second one."""
    small = SmallRun(tmp_path_factory.mktemp("small"), steps=4, save_every=2)
    small.make_inputs()
    return small


@pytest.fixture(scope="session")
def truth(small: SmallRun) -> Path:
    """The folder of a run that was never stopped."""
    folder = small.folder / "truth"
    assert train.main(small.flags(folder)) == 0
    return folder


# An agent whose replies are written (scripted.py).


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = tiny_config(2048, max_position_embeddings=LIMIT, sliding_window=64, eos_token_id=1)
    model = Gemma2(config)
    randomize(model)
    save_gemma2(model, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(TOOLS)
    return path


@pytest.fixture
def say(base: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """say(reply, ...): what the model writes; the last reply repeats for ever."""

    def install(*replies: str) -> Script:
        script = Script(Tokenizer.from_pretrained(base), replies)
        monkeypatch.setattr(loop, "decode", script)
        return script

    return install


@pytest.fixture
def ask(base: Path, tools: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """ask(question, *flags) -> exit code, [(type, content), ...], stderr."""

    def run(
        question: str = "Hi", *flags: str, with_tools: bool = True
    ) -> tuple[int, list[tuple[str, Any]], str]:
        given = ["--tools", str(tools)] if with_tools else []
        code = infer.main(["--model", str(base), "--prompt", question, "--json", *given, *flags])
        out, err = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        assert all(set(line) == {"type", "content"} for line in lines)
        assert {line["type"] for line in lines} <= {"think", "tool_call", "tool_response", "answer"}
        assert "Traceback" not in err
        return code, [(line["type"], line["content"]) for line in lines], err

    return run
