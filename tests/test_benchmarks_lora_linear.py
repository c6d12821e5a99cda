"""The benchmark of the linears at a small size: its rows, and what PEFT is given."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import lora_linear
from benchmarks.lora_cases import Case


def test_rows_have_the_fields_of_the_committed_ones(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    flags = "--device cpu --shapes k --rows 8 --ranks 4 --dropouts 0 --rounds 1 --no-peft --out"
    assert lora_linear.main([*flags.split(), str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    results = Path(lora_linear.__file__).parent / "results"
    committed = json.loads((results / "block_cpu_zen5.jsonl").read_text().splitlines()[-1])
    assert all(list(row) == list(committed) for row in rows)
    assert {row["impl"] for row in rows} == {"frozen", "reference", "fused_torch"}
    assert {row["mode"] for row in rows} == {"forward", "backward", "both"}
    assert out.with_suffix(".png").stat().st_size > 1000


def test_peft_computes_lora_on_the_same_weights() -> None:
    pytest.importorskip("peft")
    cpu = torch.device("cpu")
    case = Case("k", 8, rank=4, dropout=0.0, device=cpu, dtype=torch.float32)
    (peft,), (frozen,) = case.peft("peft_16bit"), case.frozen()
    (y,), (floor,) = (lora_linear.forward(case, [group], False) for group in (peft, frozen))
    factors = [peft[0].get_parameter(f"lora_{x}.default.weight").detach() for x in "BA"]
    delta = factors[0] @ factors[1] * 16  # alpha / r
    torch.testing.assert_close(y - floor, case.inputs[0] @ delta.T, rtol=1e-3, atol=1e-3)


def test_an_unknown_shape_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lora_linear.parse_args(["--device", "cpu", "--shapes", "k,mlp"])
    assert "--shapes: unknown mlp" in capsys.readouterr().err
