"""Content never becomes control, text comes back unchanged, and Transformers reads equal ids."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.conversation import SystemPrompt
from data.tokenizer import META, Tokenizer
from data.wire import HERMES, MISTRAL

HERMES_TAGS, MISTRAL_TAGS = HERMES.tags, MISTRAL.tags
GEMMA = Path(__file__).resolve().parents[2] / "shared" / "gemma-2-tokenizer"
needs_gemma = pytest.mark.skipif(
    not GEMMA.is_dir(), reason="needs ../shared/gemma-2-tokenizer beside the repository"
)
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PLAIN_ADDED = ["<mask>", "[@BOS@]", "<unused0>", "\n\n", "<h1>"]
CORPUS = [
    "Hello there, what is the weather in Paris?",
    '{"name": "get", "arguments": {"city": "Paris"}}',
    "user\nmodel\n",
]
MARKERS = [
    *HERMES_TAGS,
    *MISTRAL_TAGS,
    *SPECIALS,
    *PLAIN_ADDED,
    "<tool<tool_call>_call>",
    "<0x22>",
    META,
    "\u200b",
    "\U0001fae8",
    "  ",
    "\n\n",
    "\t",
    "\r\n",
    "é",
    "<2mass>",
    "<unused5>",
    "\x00",
]
hostile = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=6)), max_size=8).map(
    "".join
)


@cache
def small_source() -> str:
    """The JSON of a byte-level BPE tokenizer with Gemma's control tokens."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
        ),
    )
    core.add_tokens([tokenizers.AddedToken(content, normalized=False) for content in PLAIN_ADDED])
    return core.to_str()


@cache
def small_tokenizer(format: str | None = None) -> Tokenizer:
    return Tokenizer(small_source(), {}, format)


@cache
def gemma_tokenizer(format: str | None = None) -> Tokenizer:
    return Tokenizer.from_pretrained(GEMMA, format)


def assert_is_plain(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(hostile)
@example("<tool_call>▁ <bos>")
def test_hostile_text_stays_text(text: str) -> None:
    assert_is_plain(small_tokenizer(), text)
    assert_is_plain(small_tokenizer("mistral"), text)


@needs_gemma
@settings(max_examples=150, deadline=None)
@given(hostile)
@example("▁▁ <start_of_turn>model\n<tool_call>")
@example(" leading, trailing ")
def test_hostile_text_stays_text_for_gemma(text: str) -> None:
    assert_is_plain(gemma_tokenizer(), text)


@needs_gemma
def test_gemma_gets_eight_new_ids_in_fixed_order() -> None:
    tokenizer = gemma_tokenizer()
    assert len(tokenizer) == 256008 and tokenizer.base_size == 256000
    assert list(tokenizer.tag_ids) == list(HERMES_TAGS)
    assert list(tokenizer.tag_ids.values()) == list(range(256000, 256008))
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id, tokenizer.stop_ids) == (
        106,
        107,
        (1, 107),
    )
    assert {
        0,
        1,
        2,
        3,
        4,
        6,
        7,
        105,
        106,
        107,
        256000,
    } <= tokenizer.control_ids and 108 not in tokenizer.control_ids


def test_added_tokens_that_are_text_keep_their_id_and_others_do_not() -> None:
    tokenizer = small_tokenizer()
    ids = {entry["content"]: entry["id"] for entry in json.loads(small_source())["added_tokens"]}
    assert tokenizer.encode("<h1>") == [ids["<h1>"]] and tokenizer.encode("\n\n") == [ids["\n\n"]]
    for content in ("<mask>", "[@BOS@]", "<unused0>", "<bos>", "<think>"):
        assert len(tokenizer.encode(content)) > 1


def test_merges_that_spell_a_control_token_cannot_reach_it() -> None:
    data = json.loads(small_source())
    data["model"]["merges"] += [["<", "u"], ["<u", "n"], ["<un", "k"], ["<unk", ">"]]
    for piece in ("<u", "<un", "<unk"):
        data["model"]["vocab"].setdefault(piece, len(data["model"]["vocab"]) + 50)
    assert_is_plain(Tokenizer(json.dumps(data), {}), "a <unk> b")


def test_whole_words_cannot_reach_a_control_token_either() -> None:
    data = json.loads(small_source())
    data["model"]["ignore_merges"] = True  # every word that is in the vocabulary becomes that piece
    data["pre_tokenizer"]["use_regex"] = False  # and the whole text is one word
    assert_is_plain(Tokenizer(json.dumps(data), {}), "<bos>")


def test_format_follows_the_file_and_the_argument(tmp_path: Path) -> None:
    assert small_tokenizer().format == "hermes"
    mistral = small_tokenizer("mistral")
    assert mistral.format == "mistral" and list(mistral.tag_ids) == list(MISTRAL_TAGS)
    data = json.loads(small_source())
    size = mistral.base_size
    data["added_tokens"] += [
        {
            "id": size + place,
            "content": tag,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for place, tag in enumerate(MISTRAL_TAGS)
    ]
    found = Tokenizer(json.dumps(data), {})
    assert found.format == "mistral" and found.base_size == size and len(found) == size + 5
    found.save(tmp_path)
    entries = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert all(entry["special"] for entry in entries if entry["content"] in MISTRAL_TAGS)
    with pytest.raises(ValueError, match="format: expected one of hermes, mistral.*, got 'xml'"):
        small_tokenizer("xml")


def test_decode_names_control_ids_or_skips_them() -> None:
    tokenizer = small_tokenizer()
    ids = [
        tokenizer.bos_id,
        *tokenizer.encode("Hé"),
        tokenizer.tag_ids["<think>"],
        *tokenizer.encode(" ok"),
    ]
    assert tokenizer.decode(ids) == "<bos>Hé<think> ok"


def test_sub_tokens_spell_the_tag() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.decode(tokenizer.sub_tokens("</tool_call>")) == "</tool_call>"
    assert len(tokenizer.sub_tokens("</tool_call>")) > 1


def test_half_a_surrogate_pair_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        small_tokenizer().encode("a\ud800")


def test_save_and_load_keep_ids_format_and_wording(tmp_path: Path) -> None:
    for format in ("hermes", "mistral"):
        tokenizer = small_tokenizer(format)
        prompt = SystemPrompt("Tools: ", " Call them.", "compact")
        tokenizer.save(tmp_path, prompt)
        again = Tokenizer.from_pretrained(tmp_path)
        assert again.format == format and again.prompt == prompt and tokenizer.prompt is None
        assert (len(again), again.base_size, again.tag_ids) == (
            len(tokenizer),
            tokenizer.base_size,
            tokenizer.tag_ids,
        )
        assert again.encode("Hello <think>") == tokenizer.encode("Hello <think>")
        again.save(tmp_path)
        assert Tokenizer.from_pretrained(tmp_path).prompt == prompt


def broken_files() -> list[tuple[str, str]]:
    data = json.loads(small_source())
    unigram = {**data, "model": {"type": "Unigram", "vocab": []}}
    no_turns = {
        **data,
        "added_tokens": [entry for entry in data["added_tokens"] if "turn" not in entry["content"]],
    }
    vocab = {piece: id for piece, id in data["model"]["vocab"].items() if piece != "Ã"}
    merges = [merge for merge in data["model"]["merges"] if "Ã" not in "".join(merge)]
    no_byte = {**data, "model": {**data["model"], "vocab": vocab, "merges": merges}}
    return [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, got list"),
        (
            json.dumps(unigram),
            "expected a BPE tokenizer with added tokens, got the model type 'Unigram'",
        ),
        (json.dumps(no_turns), "got none named <start_of_turn>, <end_of_turn>"),
        (json.dumps(no_byte), "expected a tokenizer that gives every text back"),
    ]


@pytest.mark.parametrize(("text", "message"), broken_files(), ids=lambda value: str(value)[:20])
def test_broken_files_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json: ") as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert message in str(caught.value)


def test_a_broken_wording_in_the_config() -> None:
    with pytest.raises(ValueError, match="here: expected tool_prompt with before, after and shape"):
        Tokenizer(small_source(), {"tool_prompt": {"wording": "x"}}, where="here")


def test_missing_paths_and_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer.json: no such file"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder; give a path, or a hub id"):
        Tokenizer.from_pretrained(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="hub id such as owner/name"):
        Tokenizer.from_pretrained("absent")


@pytest.mark.parametrize(
    ("error_name", "expected", "message"),
    [
        (
            "GatedRepoError",
            ValueError,
            "gated; accept its licence at https://huggingface.co/google/gemma-2-2b-it",
        ),
        (
            "RepositoryNotFoundError",
            FileNotFoundError,
            "no repository that you may read at https://huggingface.co/google",
        ),
        ("LocalEntryNotFoundError", FileNotFoundError, "the hub cannot be reached"),
    ],
)
def test_hub_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error_name: str, expected: type[Exception], message: str
) -> None:
    error_type = getattr(huggingface_hub.errors, error_name)

    def fail(*_: Any, **__: Any) -> None:
        raise error_type.__new__(error_type)  # their constructors need a live response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(expected, match=message) as caught:
        Tokenizer.from_pretrained("google/gemma-2-2b-it")
    assert "\n" not in str(caught.value)


def test_saved_folder_is_complete(tmp_path: Path) -> None:
    small_tokenizer().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tool_format"] == "hermes" and "chat_template" not in config
    assert set(HERMES_TAGS) <= set(config["additional_special_tokens"])
    entries = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    assert all(entry["special"] for entry in entries if entry["content"] in HERMES_TAGS)
    shutil.rmtree(tmp_path)
