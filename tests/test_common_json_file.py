"""Files from strangers: each way in which one can be wrong is one sentence that names it, soon."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import TOKENIZER
from safetensors.torch import save_file

from agent.loading import EMBEDDED_MODEL, load_model
from common.json_file import MAX_DEPTH, parse_object, read_object
from data.tokenizer import Tokenizer
from lora.adapter import load_adapter, read_config, save_adapter
from lora.config import LoRAConfig
from lora.inject import add_lora
from model.config import Gemma2Config
from model.loader import load_gemma2, save_gemma2
from model.transformer import Gemma2

DEEP = '{"a":' * 1000 + "1" + "}" * 1000
CONTENTS: dict[str, tuple[str | bytes, str]] = {
    "deep": (DEEP, "at most 64 nested levels"),
    "deeper than the parser": ("[" * 200_000, "nested levels"),
    "one level too many": ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested"),
    "digits": ('{"a": ' + "9" * 100 + "}", "100 digits"),
    "no JSON": ("{", "expected JSON"),
    "list": ("[1]", "expected a JSON object, got list"),
    "not UTF-8": (b"\xff{}", "expected UTF-8"),
}
# Every file that the programs read as one JSON object, and how it is read
READERS: dict[str, Callable[[Path], object]] = {
    "config.json": Gemma2Config.from_json,
    "model.safetensors.index.json": load_gemma2,
    "adapter_config.json": read_config,
    "tokenizer.json": Tokenizer.from_pretrained,
    "tokenizer_config.json": Tokenizer.from_pretrained,
}


@pytest.fixture
def folder(make_model: Callable[..., Gemma2], tmp_path: Path) -> Path:
    """A base with its tokenizer and an adapter, all of them whole."""
    model = make_model()
    save_gemma2(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()  # so that the index is read
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, tmp_path / name)
    config = LoRAConfig(rank=2)
    save_adapter(add_lora(model, config), tmp_path, config)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_no_file_is_trusted(folder: Path, name: str, content: str) -> None:
    text, message = CONTENTS[content]
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        READERS[name](folder)
    assert name in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_at_the_limits_is_read(tmp_path: Path) -> None:
    text = '{"a":' * MAX_DEPTH + "9" * 64 + "}" * MAX_DEPTH
    assert parse_object(text, "here")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "a.json", max_bytes=8) == {"a": 1}
    with pytest.raises(ValueError, match="a.json: expected at most 7 bytes, got 8"):
        read_object(tmp_path / "a.json", max_bytes=7)


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=f"{name}: expected a file, got a pipe"):
            read_object(tmp_path / name)
    with pytest.raises(ValueError, match="got a folder"):
        read_object(tmp_path)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers=10000000"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_hidden_layers": None}, "missing num_hidden_layers"),
        ({"hidden_size": [32]}, "hidden_size"),
        ({"vocab_size": 1 << 24, "hidden_size": 1 << 24}, "parameters"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rope_theta": {"a": 1}}, "rope_theta"),
        ({"rope_parameters": {"full": {"rope_type": ["x"]}}}, "scaled rotary"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": [1]}}, "rope_theta"),
        ({"query_pre_attn_scalar": 10**60}, "query_pre_attn_scalar"),
        ({"eos_token_id": [[1]]}, "eos_token_id"),
        ({"bos_token_id": "two"}, "bos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"hidden_activation": ["silu"]}, "hidden_activation"),
        ({"model_type": {"a": "b"}}, "model_type"),
        ({"layer_types": "x" * 10**6}, "layer_types"),
    ],
)
def test_a_config_of_wrong_types_or_sizes(folder: Path, changes: dict[str, Any], part: str) -> None:
    edit(folder / "config.json", lambda data: data.update(changes))
    with pytest.raises(ValueError) as caught:
        Gemma2Config.from_json(folder)
    assert "config.json" in str(caught.value) and part in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        5,
        ["model.safetensors"],
        {},
        {"a": 5},
        {"a": ["x"]},
        {"a": "../other.safetensors"},
        {"a": "/etc/passwd"},
        {"a": ".."},
        {"a": "x\\y"},
        {"a": "x" * 300},
        {"a": "\ud800"},
    ],
    ids=repr,
)
def test_an_index_names_files_of_its_folder_only(folder: Path, weight_map: Any) -> None:
    save_file({}, folder.parent / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="index.json: expected (a weight_map|names of files)"):
        load_gemma2(folder)


def in_vocab(data: dict[str, Any]) -> dict[str, Any]:
    vocab = data["model"]["vocab"]
    assert isinstance(vocab, dict)
    return vocab


def add(content: Any, id: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["added_tokens"].append({"content": content, "id": id})


def swap(first: int, second: int) -> Callable[[dict[str, Any]], object]:
    """Exchange two control tokens' ids in the list of added tokens."""

    def change(data: dict[str, Any]) -> None:
        entries = data["added_tokens"]
        pair = entries[first]["id"], entries[second]["id"]
        entries[second]["id"], entries[first]["id"] = pair

    return change


def swap_everywhere(data: dict[str, Any]) -> None:
    """<eos> and <bos> change places in the whole file, which is then free of contradictions."""
    swap(1, 2)(data)
    vocab = in_vocab(data)
    vocab["<eos>"], vocab["<bos>"] = vocab["<bos>"], vocab["<eos>"]


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a word's id": (lambda d: add("<tool_call>", in_vocab(d)["the"])(d), "'<tool_call>'"),
    "a letter's id": (lambda d: add("<tool_call>", in_vocab(d)["a"])(d), "'<tool_call>'"),
    "two ids": (add("the", 5000), "the vocab says"),
    "swapped": (swap(1, 2), "<eos>"),
    "turns swapped": (swap(4, 5), "<start_of_turn>"),
    "shared": (lambda d: (add("<think>", 5000)(d), add("</think>", 5000)(d)), "'</think>'"),
    "twice": (lambda d: (add("<think>", 5000)(d), add("<think>", 5000)(d)), "'<think>'"),
    "shared in the vocab": (lambda d: in_vocab(d).update(zzzz=7), "an id of its own"),
    "id as text": (add("<think>", "5000"), "<think>"),
    "id with a fraction": (add("<think>", 5000.5), "<think>"),
    "true as id": (add("<think>", True), "<think>"),
    "negative id": (add("<think>", -1), "<think>"),
    "huge id": (add("<think>", 10**60), "<think>"),
    "list as text": (add(["<think>"], 5000), "added tokens with content and id"),
    "entry as text": (lambda d: d["added_tokens"].append("<think>"), "added tokens with content"),
    "added as object": (lambda d: d.update(added_tokens={}), "added tokens"),
    "vocab as list": (lambda d: d["model"].update(vocab=[]), "vocab"),
    "vocab of text": (lambda d: in_vocab(d).update(the="5"), "'the'"),
    "huge vocab id": (lambda d: in_vocab(d).update(the=10**60), "'the'"),
    "merges as text": (lambda d: d["model"].update(merges="a b"), "merges"),
    "merge of three": (lambda d: d["model"].update(merges=[["a", "b", "c"]]), "merges"),
    "merge of numbers": (lambda d: d["model"].update(merges=[[1, 2]]), "merges"),
    "unknown as list": (lambda d: d["model"].update(unk_token=["<unk>"]), "expected a name"),
    "prefix": (
        lambda d: d["model"].update(continuing_subword_prefix="abcdef"),
        "expected no continuing_subword_prefix",
    ),
    "model as list": (lambda d: d.update(model=["BPE"]), "BPE"),
    "model of text": (lambda d: d["model"].update(type=["BPE"]), "BPE"),
    "expression": (
        lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}}),
        "unbounded time",
    ),
    "expression, nested": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "a*a*a*b"}),
        "unbounded time",
    ),
    "decoder of numbers": (lambda d: d.update(decoder=5), "tokenizer.json"),
    "normalizer unknown": (lambda d: d.update(normalizer={"type": "X"}), "does not load"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_of_wrong_ids_or_types(folder: Path, name: str) -> None:
    change, part = TOKENIZERS[name]
    edit(folder / "tokenizer.json", change)
    with pytest.raises(ValueError, match="tokenizer.json: ") as caught:
        Tokenizer.from_pretrained(folder)
    assert part in str(caught.value) and len(str(caught.value)) < 500


def test_control_ids_that_changed_places_everywhere_are_seen_by_the_base(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "base")
    edit(tmp_path / "base" / "tokenizer.json", swap_everywhere)
    Tokenizer.from_pretrained(tmp_path / "base")  # nothing is wrong with the file alone
    with pytest.raises(ValueError, match="config.json has 2 as bos_token_id, .* this is <eos>"):
        load_model(str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"tool_format": ["hermes"]}, "tool_format"),
        ({"tool_format": "xml"}, "format"),
        ({"tool_prompt": {"before": 5}}, "tool_prompt"),
        ({"tool_prompt": {"before": "a", "shape": "round"}}, "round"),
        ({"tool_prompt": [1]}, "tool_prompt"),
        ({"additional_special_tokens": 5}, "additional_special_tokens"),
        ({"extra_special_tokens": [[1]]}, "extra_special_tokens"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"1": {"content": "<bos>"}}}, "'1'"),
        ({"added_tokens_decoder": {"2": "<bos>"}}, "'2'"),
    ],
    ids=repr,
)
def test_a_tokenizer_config_of_wrong_types(
    folder: Path, changes: dict[str, Any], part: str
) -> None:
    edit(folder / "tokenizer_config.json", lambda data: data.update(changes))
    with pytest.raises(ValueError, match="tokenizer") as caught:
        Tokenizer.from_pretrained(folder)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"r": 3_000_000}, "rank must be a whole number from 1 to 65536, got 3000000"),
        ({"r": 60_000}, "expected (60000, 32)"),
        ({"rank_pattern": {"q_proj": 60_000}}, "q_proj.lora_A.weight has shape (2, 32)"),
        ({"r": 10**60}, "rank"),
        ({"lora_alpha": float("inf")}, "alpha must"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern"),
        ({"rank_pattern": dict.fromkeys(map(str, range(5000)), 4)}, "rank_pattern"),
        ({"target_modules": {"q_proj": 1}}, "target_modules"),
        ({"target_modules": 5, "ensure_weight_tying": True}, "target_modules"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
        ({"trainable_token_indices": [10**60]}, "token rows"),
        ({"trainable_token_indices": {"embed_tokens": "abc"}}, "trainable_token_indices"),
        ({"target_modules": "(a+)+b" + "a" * 1000}, "at most 1000 characters"),
        ({"target_modules": "a{4294967296}"}, "not a regular expression"),
        ({"target_modules": r"(.)\1"}, "lookaround, backreference"),
        ({"rank_pattern": {"(?!x)q": 4}}, "lookaround, backreference"),
        ({"alpha_pattern": {"(": 4}}, "not a regular expression"),
        ({"target_modules": "(" * 400 + ")" * 400}, "LoRA"),
        # Python's own engine would need longer than the age of the universe for each of these
        ({"target_modules": r"(([a-z._0-9]+)+)+!"}, "no module matches"),
        ({"target_modules": "(.*)*" * 20 + "!"}, "no module matches"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_adapter_of_wrong_types_or_sizes_costs_nothing(
    folder: Path, make_model: Callable[..., Gemma2], changes: dict[str, Any], part: str
) -> None:
    edit(folder / "adapter_config.json", lambda data: data.update(changes))
    model = make_model()
    with pytest.raises(ValueError) as caught:
        load_adapter(model, folder)
    assert part in str(caught.value) and "\n" not in str(caught.value)
    # Left as it was: the shapes are compared before any factor has memory
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_patterns_that_would_hang_are_matched_at_once() -> None:
    config = LoRAConfig(rank_pattern={"(a+)+b": 3, r"(x|x)*y": 5}, alpha_pattern={"(.*)*z": 2.0})
    assert config.rank_of("a" * 5000) == 16 and config.rank_of("aaab") == 3
    assert config.scaling_of("model." + "x" * 5000) == 4 and config.rank_of("m.xxy") == 5
    assert LoRAConfig(targets=r"(.*)*x").matches("a" * 100 + "x")
