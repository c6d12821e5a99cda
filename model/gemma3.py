"""What the `config.json` of a Gemma 3 text model says, in the fields of `Gemma2Config`, and back.

Separate so that the reader of Gemma-2's configuration need not know how Gemma 3 writes its own:
most fields may be absent, rotary bases and layer kinds have an older and a newer spelling, and
models that see pictures nest their text model's fields, and name its tensors otherwise.
Source: "Gemma 3 Technical Report" (arXiv:2503.19786), section 2.
"""

from typing import Any

from common.json_file import show

TEXT, MULTIMODAL = "gemma3_text", "gemma3"
# Where the checkpoint of a model that sees pictures keeps the text model, and what is not its.
NESTED = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
PICTURES = tuple(
    before + name
    for before in ("", "model.")
    for name in ("vision_tower.", "multi_modal_projector.")
)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What an absent field means; published configurations leave most of them out.
ABSENT: dict[str, Any] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "eos_token_id": [1, 106],
}


def as_fields(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of `Gemma2Config` in a Gemma 3 `config.json`, unchecked but for their form.

    Raises: ValueError for layers without a pattern, or another way to scale positions than "linear"
    in the full layers.
    """
    if raw["model_type"] == MULTIMODAL:
        nested = raw.get("text_config")
        if not isinstance(nested, dict):
            raise ValueError(f"{where}: expected a text_config, got {show(nested)}")
        # google/gemma-3-4b-it has its eos_token_id here, beside text_config and not in it
        raw = nested | {name: raw[name] for name in IDS if name in raw}
    # Newer versions of Transformers hide the pattern behind an underscore.
    given = {name.removeprefix("_"): value for name, value in raw.items() if value is not None}
    fields = ABSENT | given | {"model_type": TEXT} | _rotary(given, where)
    kinds = fields.pop("layer_types", None)
    if kinds is not None:
        fields["sliding_window_pattern"] = _pattern(kinds, fields.get("num_hidden_layers"), where)
    for name in ("rope_parameters", "rope_scaling"):
        fields.pop(name, None)
    return fields


def as_json(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as a `config.json` says them, in the spelling that every version reads."""
    factor, pattern = fields["rope_factor"], fields["sliding_window_pattern"]
    layers = range(1, fields["num_hidden_layers"] + 1)
    names = {True: "sliding_attention", False: "full_attention"}
    return {name: value for name, value in fields.items() if name != "rope_factor"} | {
        "architectures": ["Gemma3ForCausalLM"],
        "rope_scaling": None if factor == 1 else {"rope_type": "linear", "factor": factor},
        "layer_types": [names[layer % pattern != 0] for layer in layers],
    }


def _rotary(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Base and factor of the full layers, base of the sliding ones, as far as they are given."""
    nested = given.get("rope_parameters", {})
    # Older files have fields of their own for the bases; `fields` keeps those by their names.
    full = given.get("rope_scaling", {})
    sliding: Any = {}
    if nested:
        nested = nested if isinstance(nested, dict) else {}
        full, sliding = (nested.get(f"{kind}_attention") for kind in ("full", "sliding"))
    is_read = isinstance(full, dict) and isinstance(sliding, dict)
    kinds = [
        table.get("rope_type", table.get("type", "default")) for table in (full, sliding) if is_read
    ]
    if kinds not in (["default", "default"], ["linear", "default"]):
        shown = show(given.get("rope_parameters", given.get("rope_scaling")))
        raise ValueError(f"{where}: these rotary embeddings are not supported: {shown}")
    found = {
        "rope_theta": full.get("rope_theta"),
        "rope_local_base_freq": sliding.get("rope_theta"),
        "rope_factor": full.get("factor") if kinds[0] == "linear" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _pattern(kinds: Any, num_layers: Any, where: str) -> int:
    """n where every n-th layer is full and the others are sliding; beyond the last if none is."""
    names = kinds if isinstance(kinds, list) else []
    pattern = next(
        (i for i, kind in enumerate(names, 1) if kind == "full_attention"), 1 + len(names)
    )
    expected = [
        "sliding_attention" if i % pattern else "full_attention" for i in range(1, 1 + len(names))
    ]
    if not names or names != expected or len(names) != num_layers:
        raise ValueError(
            f"{where}: layer_types must be full_attention at every n-th of {show(num_layers)} "
            f"layers and sliding_attention at all others, got {show(kinds)}"
        )
    return pattern


def text_name(name: str) -> str | None:
    """The text model's name of a tensor in a checkpoint; None for one that only pictures need."""
    if name.startswith(PICTURES):
        return None
    for prefix, own in NESTED.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name
