"""Text to ids and back, with content and control kept apart by construction.

The ids that structure a chat (turns, tags) exist only as numbers: the tokenizer that encodes
content does not know them, so no text can produce one. Source of the file format: the `tokenizers`
library's `tokenizer.json`.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from common.atomic import write_text
from common.gguf_file import GGUFFile, is_gguf
from common.hub import fetch
from common.json_file import read_object, read_text, show
from data.conversation import SHAPES, SystemPrompt
from data.template import chat_template, response_template
from data.tokenizer_file import check_config, parse_tokenizer
from data.tokenizer_gguf import META, tokenizer_source
from data.wire import FORMATS, HERMES, Piece, Tag

NAMED = {
    "pad_id": "<pad>",
    "eos_id": "<eos>",
    "bos_id": "<bos>",
    "start_of_turn_id": "<start_of_turn>",
    "end_of_turn_id": "<end_of_turn>",
}

# Added tokens that are not special but ordinary text with one id: Gemma's runs of newlines and
# spaces, its HTML tags; the third line has those that came with Gemma 3
_HTML = "table caption thead tbody tfoot tr th td h1 h2 h3 h4 h5 h6 "
_HTML += "blockquote strong em b i u s sub sup code "
_HTML += "a html body img span bbox ul li div iframe footer"
_TEXT_TOKEN = re.compile(rf"[{META}\s]+|</?(?:{'|'.join(_HTML.split())})>")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# The letters of byte-level pieces: printable bytes as they are, the others in their order from
# U+0100 on. Source: `bytes_to_unicode` of GPT-2's encoder.py
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)}
# How `tokenizer.json` describes a tag that is appended to the vocabulary
_SPECIAL = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {
    "special": True
}


class Tokenizer:
    """A `tokenizer.json` with a wire format's tags."""

    pad_id: int
    eos_id: int
    bos_id: int
    start_of_turn_id: int
    end_of_turn_id: int
    stop_ids: tuple[int, ...]

    def __init__(
        self,
        source: str,
        config: dict[str, Any],
        format: str | None = None,
        where: str = "tokenizer",
    ) -> None:
        """Read the text of a `tokenizer.json` and the object of a `tokenizer_config.json`.

        Raises: ValueError for anything but a byte-complete BPE tokenizer with Gemma's five control
        tokens.
        """
        self._source, self._config, self._where = source, config, where
        data = parse_tokenizer(source, where)
        added = {entry["content"]: int(entry["id"]) for entry in data["added_tokens"]}
        check_config(config, added, where)
        format = format or config.get("tool_format")
        if format is not None and format not in FORMATS:
            raise ValueError(
                f"{where}: format: expected one of {', '.join(FORMATS)}, got {show(format)}"
            )
        # A vocabulary with all tags of a format was made for it
        complete = [wire for wire in FORMATS.values() if all(tag in added for tag in wire.tags)]
        self.wire = FORMATS[format] if format else [HERMES, *complete][-1]
        # Tags that the vocabulary lacks are appended, in the format's fixed order
        size = max([*data["model"]["vocab"].values(), *added.values()]) + 1
        self.absent = [tag for tag in self.wire.tags if tag not in added]
        added |= {tag: size + offset for offset, tag in enumerate(self.absent)}
        self._size = size + len(self.absent)
        self.tag_ids = {tag: added[tag] for tag in self.wire.tags}
        # The size of the base model's vocabulary: where the tags that end this one begin
        self.base_size = self._size
        while self.base_size - 1 in self.tag_ids.values():
            self.base_size -= 1
        control = {entry["content"] for entry in data["added_tokens"] if not _is_text(entry)}
        control |= set(self.tag_ids)
        self._control = {added[content]: Tag(content) for content in control}
        # Every id that content can never produce, however it is spelled
        self.control_ids = frozenset(self._control)
        absent = [content for content in NAMED.values() if content not in added]
        if absent:
            got = f"got none named {', '.join(absent)}"
            raise ValueError(f"{self._where}: expected Gemma's control tokens, {got}")
        # bos_id and the like; declared above, so that a type checker knows them
        for name, content in NAMED.items():
            setattr(self, name, added[content])
        # A model that goes on by itself writes the tool's result, or the user's next turn.
        results = {self.tag_ids[tag] for tag in self.wire.turn_ends}
        self.stop_ids = (self.eos_id, self.end_of_turn_id)  # either ends a reply
        if self.wire.answers_in_turn:  # a call does not end the turn, but begins its result
            self.stop_ids += tuple(results)
        self.turn_ends = {*self.stop_ids, self.start_of_turn_id, *results}
        self._content = self._content_tokenizer(data, control)
        self._meta_ids: list[int] = []  # while it is asked whether any are needed
        self._meta_ids = self._find_meta_ids(data["model"]["vocab"])
        self._check_lossless()  # or a model would train on garbled text
        # The wording around the tools that training used, if a training run saved this tokenizer
        self.prompt = _read_prompt(config.get("tool_prompt"), where)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, format: str | None = None) -> "Tokenizer":
        """Load from a folder, a `tokenizer.json`, a GGUF file, or a hub id.

        Without a `format`, the one counts that a training run saved with the tokenizer; else
        "mistral" if the file has all five Mistral tags; else "hermes".

        Raises: FileNotFoundError for a folder, repository or file that does not exist, ValueError
        for a gated repository or a file that is no usable tokenizer.
        """
        # No weights: a hub repository of a model has gigabytes beside its tokenizer
        path = fetch(path_or_repo, ["tokenizer.json", "tokenizer_config.json"])
        if is_gguf(path):
            return cls(tokenizer_source(GGUFFile(path)), {}, format, str(path))
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; expected the `tokenizers` library's tokenizer.json"
            )
        config_path = path.with_name("tokenizer_config.json")
        source = read_text(path)
        config = read_object(config_path) if config_path.is_file() else {}
        return cls(source, config, format, str(path))

    @property
    def is_byte_level(self) -> bool:
        """True if pieces are runs of bytes; False for SentencePiece's, Gemma's, with its mark for a
        space."""
        return not self._meta_ids

    @property
    def format(self) -> str:
        """The name of the wire format, "hermes" or another key of `FORMATS`."""
        return self.wire.name

    def __len__(self) -> int:
        """The size of the vocabulary with the tags: the rows that the embedding must have."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """Encode as ordinary text: "<bos>" or "<tool_call>" become pieces that spell them.

        `decode` gives the text back unchanged. Gemma writes a space as U+2581, so its own pieces
        cannot tell that character from a space; it is spelled by its three byte pieces, which
        decode to it exactly.

        Raises: ValueError for half of a surrogate pair, which is no character.
        """
        try:
            # tokenizers answers half a surrogate pair with a TypeError that says nothing
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"expected whole characters, got half of a surrogate pair at {text[:40]!r}"
            ) from None
        ids: list[int] = []
        for number, part in enumerate(text.split(META) if self._meta_ids else [text]):
            ids += self._meta_ids if number else []
            ids += self._content.encode(part, add_special_tokens=False).ids
        return ids

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """Decode each run of content between control ids to a text, each control id to its tag."""
        pieces: list[Piece] = []
        run: list[int] = []
        # Runs are decoded as wholes: one character may take several byte pieces
        for id in ids:
            if id not in self.control_ids:
                run.append(int(id))
                continue
            if run:
                pieces.append(self._content.decode(run, skip_special_tokens=False))
            pieces.append(self._control[id])
            run = []
        if run:
            pieces.append(self._content.decode(run, skip_special_tokens=False))
        return pieces

    def decode(self, ids: Iterable[int]) -> str:
        """Decode; control ids appear as their names."""
        return "".join(map(str, self.pieces(ids)))

    def forbidden_ids(self, may_call: bool) -> tuple[int, ...]:
        """The control tokens that a reply must not hold, ascending.

        A model that could write <tool_response> would invent a result and believe it.
        """
        tags = self.wire.reply_tags if may_call else self.wire.thinking.tags
        allowed = {self.tag_ids[tag] for tag in tags}
        return tuple(sorted(self.control_ids - allowed - set(self.stop_ids)))

    def spelling(self, id: int) -> bytes | None:
        """The bytes that an id writes; None for a control id or one that there is not.

        `decode` cannot say: a byte piece may be a part of a character.
        """
        piece = None if id in self.control_ids else self._content.id_to_token(id)
        if piece is None:
            return None
        if self.is_byte_level:
            # An added token's own text need not be in the alphabet of bytes
            values = [_BYTE_OF.get(letter) for letter in piece]
            return piece.encode() if None in values else bytes(value or 0 for value in values)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace(META, " ").encode()

    def is_byte_piece(self, id: int) -> bool:
        """True for <0x..>, of which it takes several to write one character."""
        piece = self._content.id_to_token(id)
        return not self.is_byte_level and bool(piece and _BYTE_PIECE.fullmatch(piece))

    def sub_tokens(self, tag: str) -> list[int]:
        """The ordinary pieces that spell a tag; a new row starts from their mean."""
        return self.encode(tag)

    def save(self, directory: str | Path, prompt: SystemPrompt | None = None) -> None:
        """Write the three files that Transformers reads, `chat_template.jinja` among them.

        The chat template and inference use the wording of `prompt`; None means that of
        `self.prompt`.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        prompt = prompt or self.prompt
        data = json.loads(self._source)
        for tag in self.absent:
            data["added_tokens"].append({"id": self.tag_ids[tag], "content": tag, **_SPECIAL})
        # Tags that the vocabulary had as plain added tokens: only special ones are never split
        for entry in data["added_tokens"]:
            if entry["content"] in self.tag_ids:
                entry["special"] = True
        config = self._saved_config(data["added_tokens"], prompt)
        write_text(folder / "tokenizer.json", json.dumps(data, ensure_ascii=False))
        config_text = json.dumps(config, ensure_ascii=False, indent=2)
        write_text(folder / "tokenizer_config.json", config_text + "\n")
        write_text(folder / "chat_template.jinja", chat_template(self.wire, prompt))

    def _saved_config(
        self, added_tokens: list[dict[str, Any]], prompt: SystemPrompt | None
    ) -> dict[str, Any]:
        """The old config with the tags, but without its template, which has a file of its own."""
        # A folder that was saved before has the old wording here
        config = dict(self._config)
        for key in ("chat_template", "tool_prompt"):
            config.pop(key, None)
        decoder = {}
        for entry in added_tokens:
            decoder[str(entry["id"])] = {k: value for k, value in entry.items() if k != "id"}
        config["added_tokens_decoder"] = decoder
        # Older and newer versions of Transformers have different names for this list
        known = config.pop("additional_special_tokens", None)
        known = known or config.pop("extra_special_tokens", None) or []
        known = list(known) or [NAMED["start_of_turn_id"], NAMED["end_of_turn_id"]]
        tags = [tag for tag in self.tag_ids if tag not in known]
        config["additional_special_tokens"] = known + tags
        config |= {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        config["tool_format"] = self.format
        # With it, `transformers serve` answers with tool_calls
        config["response_template"] = response_template(self.wire)
        # Transformers' Gemma class builds a tokenizer of its own; this one takes tokenizer.json as
        # it is
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.setdefault("clean_up_tokenization_spaces", False)
        if prompt:
            config["tool_prompt"] = dataclasses.asdict(prompt)
        return config

    def _content_tokenizer(self, data: dict[str, Any], control: set[str]) -> tokenizers.Tokenizer:
        """Build the tokenizer for content: the same pieces and merges without any control token.

        Taken out of the added tokens, the vocabulary and the merges alike; `encode_special_tokens`
        would still let the non-special ones through (<unused0>, <mask>, [@BOS@]).
        """
        model = dict(data["model"])
        model["vocab"] = {piece: id for piece, id in model["vocab"].items() if piece not in control}
        merges = []
        for merge in model["merges"]:
            # Two spellings of the file format: "a b" and ["a", "b"]
            merged = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
            if merged not in control:
                merges.append(merge)
        model["merges"] = merges
        if model.get("unk_token") in control:
            model["unk_token"] = None
        added = [entry for entry in data["added_tokens"] if entry["content"] not in control]
        # Without the vocabulary's word for their ids, the library would number them anew
        model["vocab"] |= {entry["content"]: entry["id"] for entry in added}
        bare = {**data, "model": model, "added_tokens": added}
        # A post-processor would add <bos>, which is a control token
        bare |= dict.fromkeys(("post_processor", "truncation", "padding"))
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(bare, ensure_ascii=False))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # Bare Exception for every fault of the file that the library foresees, and for the others
        # its PanicException, which is none
        except BaseException as error:
            raise ValueError(
                f"{self._where}: expected a tokenizer.json, got one that does not load: {error}"
            ) from None

    def _find_meta_ids(self, vocab: dict[str, int]) -> list[int]:
        """The byte pieces of the space mark, where the tokenizer would confuse it with a space."""
        pieces = [f"<0x{byte:02X}>" for byte in META.encode()]
        is_exact = self.decode(self.encode(META)) == META
        if is_exact or not all(piece in vocab for piece in pieces):
            return []
        return [vocab[piece] for piece in pieces]

    def _check_lossless(self) -> None:
        """Refuse a tokenizer that changes text.

        Probed with every byte, spaces at both ends, and text that looks like a byte piece.
        """
        # All of ASCII and every continuation byte, then one character for each first byte of
        # UTF-8's longer forms
        spans = (
            range(0xC0),
            range(0xC0, 0x800, 0x40),
            range(0x800, 0xD800, 0x1000),
            range(0xE000, 0x110000, 0x10000),
        )
        letters = [chr(code) for span in spans for code in span] + [META]
        for probe in ("".join(letters), "  " + " ".join(letters) + "\n\n ", "<0x22>a\u200b"):
            if self.decode(self.encode(probe)) != probe:
                raise ValueError(
                    f"{self._where}: expected a tokenizer that gives every text back, "
                    f"got one that does not"
                )


def _is_text(entry: dict[str, Any]) -> bool:
    return not entry.get("special") and bool(_TEXT_TOKEN.fullmatch(entry["content"]))


def _read_prompt(value: Any, where: str) -> SystemPrompt | None:
    if value is None:
        return None
    fields = {"before", "after", "shape"}
    is_text = isinstance(value, dict) and all(isinstance(part, str) for part in value.values())
    if not is_text or not {"before"} <= set(value) <= fields:
        raise ValueError(
            f"{where}: expected tool_prompt with before, after and shape in the config, "
            f"got {show(value)}"
        )
    if value.get("shape", SHAPES[0]) not in SHAPES:
        raise ValueError(
            f"{where}: expected a tool_prompt of the shape {' or '.join(SHAPES)}, "
            f"got {show(value['shape'])}"
        )
    return SystemPrompt(**value)
