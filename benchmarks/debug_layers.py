"""Our hidden states against Transformers', layer by layer, for any checkpoint that both can read.

    python -m benchmarks.debug_layers                       # the embedded base
    python -m benchmarks.debug_layers --model google/gemma-2-2b-it --text "What time is it?"

For whoever changes `model/`, or loads a checkpoint that answers oddly: the first line that is off
says where to look. The exit code is 1 where one is. Each model is in memory alone.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from agent.loading import model_folder
from common.cli import USER_ERRORS, Parser, float_in, int_at_least
from common.device import DTYPES, pick_device
from common.gguf_file import is_gguf
from common.screen import Screen
from data.tokenizer import Tokenizer
from model.config import Gemma2Config
from model.loader import load_gemma2

# Differences as shares of a part's largest value: sums are taken in another order, and a bf16
# value has eight bits.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 2e-2}
FIRST_ID = 4  # below are padding, the ends of texts and the unknown token


@dataclass(frozen=True)
class Difference:
    """One part of the model: the worst difference of its outputs."""

    name: str
    largest: float  # of their values
    absolute: float
    tolerance: float

    @property
    def relative(self) -> float:
        """The worst difference as a share of the largest value."""
        return self.absolute / self.largest if self.largest else self.absolute

    @property
    def is_off(self) -> bool:
        # Written so that NaN, which compares as false with everything, is off.
        return not self.relative <= self.tolerance

    @property
    def is_branch(self) -> bool:
        """True for attention or MLP of a layer, whose line has the sum of both."""
        return self.name.endswith(("self_attn", "mlp"))


def part_names(num_layers: int) -> list[str]:
    """The decoder's modules whose outputs are compared, in the order of computation."""
    names = ["embed_tokens"]
    for layer in (f"layers.{number}" for number in range(num_layers)):
        names += [f"{layer}.self_attn", f"{layer}.mlp", layer]
    return [*names, "norm"]


@torch.no_grad()
def outputs_of(
    model: nn.Module, decoder: nn.Module, names: Sequence[str], tokens: Tensor
) -> dict[str, Tensor]:
    """What each of the decoder's modules gives for tokens (1, T), and the model's logits.

    In float32 on the CPU, whatever and wherever the model is.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            # Transformers' attention returns its weights beside its output.
            tensor = output[0] if isinstance(output, tuple) else output
            found[name] = tensor.float().cpu()

        return hook

    hooks = [decoder.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    result = model(tokens)
    for hook in hooks:
        hook.remove()
    logits = result if isinstance(result, Tensor) else result.logits
    return found | {"logits": logits.float().cpu()}


def compare(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float
) -> list[Difference]:
    """The difference of every part, in the order of computation."""
    found = []
    for name, truth in theirs.items():
        assert ours[name].shape == truth.shape, name
        absolute = (ours[name] - truth).abs().max().item()
        found.append(Difference(name, truth.abs().max().item(), absolute, tolerance))
    return found


def load_theirs(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Transformers' model. Raises: ValueError without the library, or for what it cannot read."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise ValueError(
            f"expected Transformers to compare with, got {error}; pip install transformers"
        ) from None
    # Its bars and reports would stand in the middle of the table; errors are raised all the same.
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    # Eager attention applies the softcap.
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": dtype}
    folder = path
    if is_gguf(path):
        folder, options["gguf_file"] = path.parent, path.name
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ImportError, KeyError, RuntimeError) as error:
        reason = f"{error}".splitlines()[0]
        raise ValueError(f"{path}: Transformers cannot read it ({reason})") from None
    return model.eval().to(device)


def measure(args: argparse.Namespace) -> list[Difference]:
    """The differences for the flags. Raises: ValueError, FileNotFoundError for wrong inputs."""
    path, device, dtype = model_folder(args.model), pick_device(args.device), DTYPES[args.dtype]
    config = Gemma2Config.from_json(path)
    if args.text is None:
        generator = torch.Generator().manual_seed(args.seed)
        shape = (1, args.length)
        tokens = torch.randint(FIRST_ID, config.vocab_size, shape, generator=generator)
    else:
        tokenizer = Tokenizer.from_pretrained(path)
        tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(args.text)]])
    names, tokens = part_names(config.num_hidden_layers), tokens.to(device)
    # One after the other: of a large model two copies might not fit.
    model = load_gemma2(path, device, dtype)
    ours = outputs_of(model, model.model, names, tokens)
    del model
    peer = load_theirs(path, dtype, device)
    theirs = outputs_of(peer, peer.get_decoder(), names, tokens)
    order = [*names, "logits"]
    tolerance = args.tolerance or TOLERANCES[args.dtype]
    return compare(ours, {name: theirs[name] for name in order}, tolerance)


def as_table(differences: Sequence[Difference]) -> Table:
    """A line for each layer, and for attention and MLP of the first one that is off."""
    first = next((d for d in differences if d.is_off), None)
    # The layer that the first one that is off belongs to.
    layer = "" if first is None else first.name.removesuffix(".self_attn").removesuffix(".mlp")
    table = Table("part", "largest value", "worst absolute", "worst relative", "")
    table.columns[0].no_wrap = True
    for d in differences:
        if d.is_branch and not d.name.startswith(f"{layer}."):
            continue
        mark = "first off" if d is first else ("off" if d.is_off else "")
        numbers = (f"{d.largest:.3g}", f"{d.absolute:.1e}", f"{d.relative:.1e}")
        table.add_row(d.name, *numbers, mark, style="red" if mark else "")
    return table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("Compares our hidden states with Transformers', layer by layer.")
    parser.prog = "python -m benchmarks.debug_layers"
    model = "folder, GGUF file or hub id; default: the embedded base"
    parser.add_argument("--model", help=model)
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of both models")
    parser.add_argument("--text", help="what both read; default: random tokens")
    parser.add_argument("--length", type=int_at_least(1), default=64, help="of the random tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    words = ", ".join(f"{value:g} in {name}" for name, value in TOLERANCES.items())
    tolerance = f"largest relative difference that is not off; default: {words}"
    parser.add_argument("--tolerance", type=float_in(0), help=tolerance)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 if nothing is off, 1 if something is, 2 for a wrong input."""
    args, console = parse_args(argv), Screen()
    try:
        differences = measure(args)
    except USER_ERRORS as error:
        print(f"debug_layers: {error}", file=sys.stderr)
        return 2
    console.print(as_table(differences))
    return int(any(d.is_off for d in differences))


if __name__ == "__main__":
    sys.exit(main())
