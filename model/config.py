"""The sizes and constants of a Gemma-2 checkpoint, read from its `config.json`.

Separate from the modules so that a reader can see every number that shapes the model in one place.
Gemma 3's text models are the same but for the last fields; `gemma3.py` reads their `config.json`.
Source: "Gemma 2: Improving Open Language Models at a Practical Size" (arXiv:2408.00118), table 1.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.gguf_file import GGUFFile, is_gguf
from common.json_file import read_object, show
from model import gemma3
from model.gguf import config_fields

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
UNSUPPORTED = ("attention_bias", "use_bidirectional_attention")
# The fields whose value is always this one in Gemma-2, whose own config.json does not have them.
GEMMA3_ONLY = ("model_type", "rope_local_base_freq", "rope_factor", "sliding_window_pattern")
# Far above any Gemma, and far below what would fill a memory before the weights are compared:
# modules are built for each layer, tables for each size.
MAX_LAYERS, MAX_SIZE, MAX_PARAMETERS = 1024, 1 << 24, 10**12


@dataclass(frozen=True)
class Gemma2Config:
    """Fields are named as in `config.json`; the defaults are Gemma-2-2B's."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int = 4096
    query_pre_attn_scalar: float = 256
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    tie_word_embeddings: bool = True
    hidden_activation: str = "gelu_pytorch_tanh"
    bos_token_id: int = 2
    eos_token_id: int | tuple[int, ...] = (1, 107)
    pad_token_id: int = 0
    # Gemma 3's alone: a rotary base of the sliding layers' own, positions that the full layers
    # divide by a factor, and a full layer at every sixth place, not at every second.
    model_type: str = "gemma2"
    rope_local_base_freq: float | None = None
    rope_factor: float = 1.0
    sliding_window_pattern: int = 2

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"config: head_dim must be even for rotary embeddings, got {self.head_dim}"
            )
        if self.hidden_activation != "gelu_pytorch_tanh":
            raise ValueError(
                "config: hidden_activation must be gelu_pytorch_tanh, "
                f"got {self.hidden_activation!r}"
            )

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def has_qk_norms(self) -> bool:
        """True for Gemma 3, which norms each query and key before it turns them."""
        return self.model_type == gemma3.TEXT

    @property
    def num_parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * heads * self.head_dim * self.hidden_size  # q and o, k and v
        block = attention + 3 * self.hidden_size * self.intermediate_size + 4 * self.hidden_size
        block += 2 * self.head_dim if self.has_qk_norms else 0
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return tables + self.num_hidden_layers * block + self.hidden_size

    def is_sliding(self, layer: int) -> bool:
        """True for the layers whose queries see the last `sliding_window` keys alone.

        The query's own key is one of them. In Gemma-2 every second layer is full, from 1 on.
        """
        return (layer + 1) % self.sliding_window_pattern != 0

    @classmethod
    def from_json(cls, path: str | Path) -> "Gemma2Config":
        """Reads `config.json`, or the one inside the folder `path`, or a GGUF file's fields.

        Raises: FileNotFoundError without such a file; ValueError if it is not Gemma-2's or 3's.
        """
        path = Path(path)
        if is_gguf(path) and path.is_file():
            return cls._from_dict(config_fields(GGUFFile(path)), str(path))
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; a Gemma-2 folder holds config.json and *.safetensors"
            )
        return cls._from_dict(read_object(path), str(path))

    @classmethod
    def _from_dict(cls, raw: dict[str, Any], where: str) -> "Gemma2Config":
        family = raw.get("model_type", "gemma2")
        if family in (gemma3.TEXT, gemma3.MULTIMODAL):
            raw = gemma3.as_fields(raw, where)
        elif family != "gemma2":
            raise ValueError(
                f"{where}: model_type is {show(family)}, "
                "but only gemma2 and gemma3 checkpoints are supported"
            )
        else:
            raw = {name: value for name, value in raw.items() if name not in GEMMA3_ONLY}
            _check_layers(raw, where)
            raw |= _rotary_base(raw, where)
        missing = [name for name in REQUIRED if raw.get(name) is None]
        if missing:
            raise ValueError(
                f"{where}: missing {', '.join(missing)}; is this a Gemma-2 config.json?"
            )
        odd = [f"{name}={show(raw[name])}" for name in UNSUPPORTED if raw.get(name)]
        if odd:
            raise ValueError(f"{where}: not supported: {', '.join(odd)}")
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in raw.items() if name in known}
        # Absent means the field's default; null means "none" only for the two softcaps.
        values = {
            name: value for name, value in values.items() if value is not None or name in SOFTCAPS
        }
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        _check_numbers(values, where)
        _check_others(values, where)
        try:
            config = cls(**values)
        except ValueError as error:  # the class names the field, and here the file is known too
            raise ValueError(f"{where}: {error}") from None
        if config.num_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"{where}: expected at most {MAX_PARAMETERS:.0e} parameters, "
                f"got sizes that make {config.num_parameters:.0e}"
            )
        return config

    def to_json(self, path: str | Path, dtype: str | None = None) -> None:
        """Writes a `config.json` as Transformers reads it; `dtype` as in "bfloat16"."""
        values = asdict(self)
        if self.has_qk_norms:
            values = gemma3.as_json(values)
        else:
            values = {name: value for name, value in values.items() if name not in GEMMA3_ONLY}
            values |= {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
        values |= {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": self.hidden_activation,
        }
        if dtype is not None:
            values["torch_dtype"] = dtype
        write_text(Path(path), json.dumps(values, indent=2) + "\n")


def _rotary_base(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """rope_theta, which newer Transformers nests in rope_parameters, once or per kind of layer."""
    nested = raw.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise ValueError(f"{where}: rope_parameters must be an object, got {show(nested)}")
    tables = [value for value in nested.values() if isinstance(value, dict)] or [nested]
    is_scaled = any(table.get("rope_type", "default") != "default" for table in tables)
    if is_scaled or raw.get("rope_scaling"):
        scaling = show(nested or raw.get("rope_scaling"))
        raise ValueError(f"{where}: scaled rotary embeddings are not supported: {scaling}")
    # A list, because a value that is no number need not be hashable; `_check_numbers` names it.
    bases = [table["rope_theta"] for table in tables if table.get("rope_theta")]
    if any(base != bases[0] for base in bases):
        raise ValueError(f"{where}: rope_theta must be the same for all layers, got {show(bases)}")
    return {"rope_theta": bases[0]} if bases else {}


def _check_layers(raw: dict[str, Any], where: str) -> None:
    """Refuses layers in an order that Gemma-2 does not have."""
    kinds = raw.get("layer_types")
    names = kinds if isinstance(kinds, list) else []
    expected = ["full_attention" if i % 2 else "sliding_attention" for i in range(len(names))]
    if kinds is not None and (kinds != expected or len(names) != raw.get("num_hidden_layers")):
        raise ValueError(
            f"{where}: layer_types must alternate sliding_attention, full_attention, "
            f"got {show(raw['layer_types'])}"
        )


def _check_numbers(values: dict[str, Any], where: str) -> None:
    whole = (*REQUIRED, "sliding_window", "max_position_embeddings", "sliding_window_pattern")
    bases = ("rope_theta", "rope_local_base_freq", "rope_factor")
    real = ("rms_norm_eps", *bases, "query_pre_attn_scalar", *SOFTCAPS)
    bad = []
    for name in whole:
        limit = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE
        if name in values and not (_is_number(values[name], int) and 0 < values[name] <= limit):
            bad.append(f"{name}={show(values[name])} (whole, at most {limit})")
    for name in real:
        value = values.get(name)  # None is a softcap that is switched off
        # The bounds keep the arithmetic finite in float32, and leave out infinity and NaN.
        if value is not None and not (_is_number(value, int, float) and 1e-12 <= value <= 1e12):
            bad.append(f"{name}={show(value)}")
    if bad:
        raise ValueError(f"{where}: expected positive numbers, got {', '.join(bad)}")


def _check_others(values: dict[str, Any], where: str) -> None:
    """Refuses ids, a switch or a name of another type, each of which would fail far from here."""
    bad = []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(name, 0)
        ids = value if isinstance(value, tuple) and name == "eos_token_id" else (value,)
        if not all(_is_number(id, int) and 0 <= id < MAX_SIZE for id in ids):
            bad.append(f"{name}={show(value)} (an id)")
    if not isinstance(values.get("tie_word_embeddings", True), bool):
        bad.append(f"tie_word_embeddings={show(values['tie_word_embeddings'])} (true or false)")
    if not isinstance(values.get("hidden_activation", ""), str):
        bad.append(f"hidden_activation={show(values['hidden_activation'])} (a name)")
    if bad:
        raise ValueError(f"{where}: expected other types, got {', '.join(bad)}")


def _is_number(value: Any, *kinds: type) -> bool:
    # Not isinstance: True is an int, and no size.
    return type(value) in kinds
