"""What a GGUF file says in the words of a checkpoint: its configuration, and its tensors by name.

Separate from the loader, which meets both kinds of files, and from `common/gguf_file.py`, which
knows no model. Norm weights are stored as 1 + w in GGUF, since llama.cpp adds no 1.
Source of names and of what no field says: llama.cpp, src/llama-arch.cpp and src/llama-model.cpp.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.gguf_file import GGUFFile
from common.json_file import show
from common.tensor_file import Headers
from model import gemma3

FAMILIES = {"gemma2": "gemma2", "gemma3": gemma3.TEXT}
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Where the scale of the scores is that of hidden_size / heads and not of a head's width: the 27B
# models, which only their number of layers tells.
LAYERS_27B = {"gemma2": 46, "gemma3": 62}


def checkpoint_name(name: str) -> str:
    """A tensor's name in a checkpoint; one that is not known stays as it is."""
    prefix, _, rest = name.partition(".")
    layer, _, module = rest.removesuffix(".weight").partition(".")
    if prefix == "blk" and module in BLOCK:
        return f"model.layers.{layer}.{BLOCK[module]}.weight"
    return TOP.get(name, name)


def gguf_names(num_layers: int) -> dict[str, str]:
    """The name in GGUF of every tensor of a checkpoint; the inverse of `checkpoint_name`."""
    layers = range(num_layers)
    blocks = [f"blk.{layer}.{module}.weight" for layer in layers for module in BLOCK]
    return {checkpoint_name(name): name for name in (*TOP, *blocks)}


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """What the model's `config.json` would say.

    Raises: ValueError for another architecture, or a field that is missing.
    """
    family = file.require("general.architecture", str)
    if family not in FAMILIES:
        raise ValueError(
            f"{file.path}: expected the architecture {' or '.join(FAMILIES)}, got {show(family)}; "
            "only Gemma 2 and 3 can be run"
        )

    def whole(name: str) -> int:
        value: int = file.require(f"{family}.{name}", int)
        return value

    embedding = file.tensors.get("token_embd.weight")
    heads, width, layers = (
        whole(name) for name in ("attention.head_count", "embedding_length", "block_count")
    )
    head_dim = whole("attention.key_length")
    is_27b = layers == LAYERS_27B[family]
    fields = {
        "model_type": FAMILIES[family],
        "vocab_size": embedding.shape[0] if embedding and embedding.shape else 0,
        "hidden_size": width,
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": whole("attention.head_count_kv"),
        "head_dim": head_dim,
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": file.require(f"{family}.attention.layer_norm_rms_epsilon", float),
        "sliding_window": whole("attention.sliding_window"),
        # A file that says 0 heads is to reach the check of all sizes, not a division by zero
        "query_pre_attn_scalar": width / max(1, heads) if is_27b else head_dim,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.require("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": file.require("tokenizer.ggml.eos_token_id", int),
        "pad_token_id": file.fields.get("tokenizer.ggml.padding_token_id"),
    }
    return fields | _rotary(file, family) | _softcaps(file, family)


def _rotary(file: GGUFFile, family: str) -> dict[str, Any]:
    base = file.fields.get(f"{family}.rope.freq_base")
    kind = file.fields.get(f"{family}.rope.scaling.type", "none")
    factor = file.fields.get(f"{family}.rope.scaling.factor")
    scaling = None if kind == "none" else {"rope_type": kind, "factor": factor}
    # The sliding layers' own base has no field: it is the one of every Gemma 3 (`gemma3.ABSENT`)
    return {"rope_theta": base, "rope_scaling": scaling}


def _softcaps(file: GGUFFile, family: str) -> dict[str, Any]:
    if family == "gemma3":
        return {}
    names = {"attn_logit_softcapping": "attn_", "final_logit_softcapping": "final_"}
    return {
        name: file.require(f"{family}.{part}logit_softcapping", float)
        for name, part in names.items()
    }


def headers(file: GGUFFile) -> Headers:
    """Shape and type of every tensor that `tensors` gives, under a checkpoint's names."""
    return {checkpoint_name(name): (e.shape, "F32") for name, e in file.tensors.items()}


def tensors(file: GGUFFile, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors one by one, in `dtype`, under a checkpoint's names.

    Raises: as `GGUFFile.tensor`.
    """
    for stored in file.tensors:
        name = checkpoint_name(stored)
        if name.endswith("norm.weight"):
            # In float32, before anything is rounded: the file holds 1 + w.
            yield name, file.tensor(stored).sub_(1.0).to(dtype)
        else:
            yield name, file.tensor(stored, dtype)
