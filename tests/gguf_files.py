"""GGUF files as llama.cpp's converter writes them, of small models and vocabularies."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from model.gguf import gguf_names
from model.transformer import Gemma2

Fields = dict[str, Any]
SMALL: dict[str, Any] = {  # sizes that blocks of 32 numbers divide
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "query_pre_attn_scalar": 16,
}


def add_fields(writer: Any, fields: Fields) -> None:
    for name, value in fields.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_array(name, value)


def write(path: Path, family: str, fields: Fields, tensors: dict[str, Any]) -> Path:
    """A file of these fields and tensors; a tensor is an array, or bytes and their type."""
    writer = gguf.GGUFWriter(path, family)
    add_fields(writer, fields)
    for name, tensor in tensors.items():
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_fields(model: Gemma2) -> Fields:
    """The fields of a model's own, without a tokenizer but for its ids."""
    config = model.config
    family = "gemma3" if config.has_qk_norms else "gemma2"
    fields: Fields = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base": config.rope_theta,
    }
    if family == "gemma2":
        fields["attn_logit_softcapping"] = config.attn_logit_softcapping
        fields["final_logit_softcapping"] = config.final_logit_softcapping
    elif config.rope_factor != 1:
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
    ids = {"bos": config.bos_token_id, "eos": 1, "padding": config.pad_token_id}
    named = {f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items()}
    return {f"{family}.{name}": value for name, value in fields.items()} | named


def model_tensors(model: Gemma2, kind: str) -> dict[str, Any]:
    """The tensors of a model, its matrices quantized; the model gets what that left of them."""
    names = gguf_names(model.config.num_hidden_layers)
    tensors: dict[str, Any] = {}
    quantization = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if name.endswith("norm.weight"):
            stored = 1.0 + weight  # float32, as llama.cpp's converter writes them
            tensors[names[name]] = stored
            left = stored - np.float32(1.0)
        else:
            raw = gguf.quantize(weight, quantization)
            tensors[names[name]] = (raw, quantization)
            left = gguf.dequantize(raw, quantization)
        parameter.data = torch.from_numpy(np.array(left).reshape(weight.shape))
    return tensors
