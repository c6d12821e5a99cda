"""A whole training step under a mode that refuses what MPS refuses: float64 and operators without
an MPS kernel.

There is no Mac behind these tests: the step runs on the CPU, by the code that an accelerator
without Triton would run.
"""

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from lora import steps as plain
from training.choices import check_recomputed_dropout

NOT_ON_MPS = (torch.float64, torch.complex128)
ROOT = Path(__file__).parents[1]


def unimplemented() -> set[str]:
    """The operators that PyTorch's own tests list as having no MPS kernel for any dtype."""
    path = Path(torch.__file__).parent / "testing" / "_internal" / "common_mps.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.AnnAssign)
            and getattr(node.target, "id", "") == "UNIMPLEMENTED_XFAILLIST"
        ):
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            found = {
                k.value
                for k, v in pairs
                if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)
            }
            # "to" stands there for its conversions to float64.
            return {str(name).replace(".", "_") for name in found} - {"to"}
    raise AssertionError(f"{path}: no list of unimplemented operators")


class LikeMPS(TorchDispatchMode):
    """Raises where MPS would, and remembers the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.refused, self.seen = unimplemented(), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in self.refused:
            raise NotImplementedError(f"aten::{name} has no MPS kernel")
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.dtype in NOT_ON_MPS:
                raise TypeError(
                    f"aten::{name} has a tensor of {leaf.dtype}, which MPS does not have"
                )
        has_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.seen["index by mask" if has_mask else name] += 1
        return result


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("adapt", ["rows", "course"])
def test_a_training_step_and_an_evaluation_run_on_what_mps_has(
    small_base: Path,
    small_rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    adapt: str,
) -> None:
    monkeypatch.setattr(plain, "has_integer_masks", lambda device: False)
    recompute = "selective" if adapt == "rows" else "full"
    flags = (
        f"--model {small_base} --dataset {small_rows} --output {tmp_path / 'run'} --device cpu "
        f"--dtype {dtype} --max-length 256 --max-steps 2 --accumulate 2 --eval-rows 2 "
        f"--eval-calls 2 --adapt {adapt} --lora-impl torch --checkpoint-activations {recompute}"
    ).split()
    steps, mode = train.train, LikeMPS()

    def under_the_mode(run: train.Run, start: int, line: train.Line | None) -> None:
        with mode:
            steps(run, start, line)

    monkeypatch.setattr(train, "train", under_the_mode)
    assert train.main(flags) == 0
    assert {"mm", "tanh", "gelu_backward", "lerp"} <= mode.seen.keys()


def test_a_step_waits_for_the_device_only_for_what_it_logs(
    small_base: Path, small_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scalar that is read, and an index by mask, whose size is not known before: each would stop
    the host on a GPU."""
    found = []
    steps = train.train_step

    def counted(run: train.Run, step: int) -> dict[str, Any]:
        with LikeMPS() as mode:
            line = steps(run, step)
        mode.seen["_local_scalar_dense"] -= sum(
            len(group["params"]) for group in run.optimizer.param_groups
        )
        found.append(
            {
                name: mode.seen[name]
                for name in ("_local_scalar_dense", "index by mask", "masked_select")
            }
        )
        return line

    monkeypatch.setattr(train, "train_step", counted)
    flags = (
        f"--model {small_base} --dataset {small_rows} --output {tmp_path / 'run'} --device cpu "
        "--dtype fp32 --max-length 256 --max-steps 2 --accumulate 3 --eval-rows 0 --eval-calls 0 "
        "--dropout 0"
    ).split()
    assert train.main(flags) == 0
    # The loss and the norm of the gradients; AdamW's counters, which it keeps on the host, are left
    # out above.
    assert found[1] == {"_local_scalar_dense": 2, "index by mask": 0, "masked_select": 0}


def test_the_mode_refuses() -> None:
    with LikeMPS(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()
    name = next(
        n
        for n in sorted(unimplemented())
        if n in {"geqrf", "ormqr", "linalg_eigvals", "symeig", "linalg_eig"}
    )
    with LikeMPS(), pytest.raises(NotImplementedError, match=name):
        getattr(torch.ops.aten, name)(torch.eye(2))


@pytest.mark.parametrize(
    ("device", "recompute", "impl", "dropout", "refused"),
    [
        ("mps", "full", "reference", 0.05, True),
        ("mps", "full", "torch", 0.05, False),
        ("mps", "none", "reference", 0.05, False),
        ("mps", "full", "reference", 0.0, False),
        ("cpu", "full", "reference", 0.05, False),
    ],
)
def test_a_mask_that_would_change_when_recomputed_is_refused(
    device: str, recompute: str, impl: str, dropout: float, refused: bool
) -> None:
    args = train.parse_args(["--dropout", str(dropout)])
    if refused:
        with pytest.raises(ValueError, match="--lora-impl auto"):
            check_recomputed_dropout(args, recompute, impl, torch.device(device))
    else:
        check_recomputed_dropout(args, recompute, impl, torch.device(device))
