"""A merged embedded model as a GGUF file for llama.cpp, whose own converter refuses its tokenizer.

Gemma's merges never join two kinds of characters in this vocabulary, so it gives the same ids with
no splitting at all: that is what llama.cpp calls "gemma4", with U+2581 for a space, other
characters as they are, and bytes beyond ASCII as <0x..>. Needs the `gguf` package.
"""

import json
from pathlib import Path
from typing import Any

import torch

from model.config import Gemma2Config
from model.gguf import gguf_names
from model.loader import load_gemma2


def byte_letters() -> dict[str, int]:
    """The letters of byte-level vocabularies, and the byte that each stands for (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def spelled(piece: str, letters: dict[str, int]) -> str:
    """A piece as llama.cpp spells it: text where it is ASCII, <0x..> for a byte beyond."""
    values = bytes(letters[letter] for letter in piece)
    if values.isascii():
        return values.decode().replace(" ", "\u2581")
    return "".join(f"<0x{value:02X}>" for value in values)


def write_gguf(folder: Path, path: Path) -> None:
    """Writes the merged model in `folder` as a float32 GGUF file."""
    import gguf

    writer: Any = gguf.GGUFWriter(path, "gemma2")
    config = Gemma2Config.from_json(folder)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    _add_tokenizer(writer, folder, gguf)
    names = gguf_names(config.num_hidden_layers)
    for name, parameter in load_gemma2(folder, dtype=torch.float32).named_parameters():
        # llama.cpp adds no 1 to a norm's weight, so the file holds 1 + w.
        tensor = parameter.detach() + (1.0 if name.endswith("norm.weight") else 0.0)
        writer.add_tensor(names[name], tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, folder: Path, gguf: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    letters = byte_letters()
    added = {entry["id"]: entry["content"] for entry in data["added_tokens"]}
    pieces = {id: piece for piece, id in data["model"]["vocab"].items()} | added
    tokens = [pieces[id] for id in range(len(pieces))]
    kinds = []
    for id, piece in enumerate(tokens):
        tokens[id] = piece if id in added else spelled(piece, letters)
        is_byte = id not in added and tokens[id].startswith("<0x")
        kind = gguf.TokenType.CONTROL if id in added else gguf.TokenType.NORMAL
        kinds.append(gguf.TokenType.BYTE if is_byte else kind)
    merges = []
    for merge in data["model"]["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        merges.append(" ".join(spelled(part, letters) for part in pair))
    writer.add_tokenizer_model("gemma4")
    writer.add_tokenizer_pre("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_merges(merges)
    ids = {content: id for id, content in added.items()}
    writer.add_bos_token_id(ids["<bos>"])
    writer.add_eos_token_id(ids["<eos>"])
    writer.add_eot_token_id(ids["<end_of_turn>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
