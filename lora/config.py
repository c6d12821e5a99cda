"""What a LoRA adapter is made of: ranks, scalings, targets; and PEFT's `adapter_config.json`.

Source: "LoRA" (arXiv:2106.09685), section 4.1; rank-stabilised scaling: arXiv:2312.03732.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from common.json_file import show

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDING, HEAD = "embed_tokens", "lm_head"
# PEFT options that change the result and that this implementation does not have; each must be
# absent or "off".
UNSUPPORTED = """use_dora modules_to_save layers_to_transform layer_replication lora_bias
    target_parameters exclude_modules use_bdlora alora_invocation_tokens arrow_config
    fan_in_fan_out use_qalora kasa_config velora_config monteclora_config""".split()
# Ways to start that leave the base's weights alone; the others (pissa, olora, ...) save an adapter
# of a changed base.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# A rank above every width of a Gemma only costs memory; an adapter of all modules has some hundred
# entries in a pattern; an expression is written by hand.
MAX_RANK, MAX_ENTRIES, MAX_EXPRESSION = 1 << 16, 1024, 1000
_ANY_PATH = r"(?:.*\.)?"  # in front of a pattern's key, which matches the end of a path
_PLAIN = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class LoRAConfig:
    """Rank r, alpha and dropout of the low-rank path, and the modules that it is added to.

    `targets` are module names or one regular expression. adapt "rows" trains the rows `token_ids`
    of the embedding fully; "course" puts LoRA on embedding and head instead, and `token_ids` are
    then the frozen new rows that the adapter must carry. An untied head gets trained rows of its
    own where `trains_head_tokens`. Patterns map a module name or a regular expression to its own
    rank or alpha.
    Raises: ValueError naming every field that is out of range.
    """

    rank: int = 16
    alpha: float = 64
    dropout: float = 0.05
    targets: tuple[str, ...] | str = LINEARS
    adapt: str = "rows"
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    trains_head_tokens: bool = True
    base_model: str = ""

    def __post_init__(self) -> None:
        # A sentence for each condition: every field that is out of range is named at once.
        checks = {
            f"rank must be a whole number from 1 to {MAX_RANK}, got {show(self.rank)}": _is_rank(
                self.rank
            ),
            f"alpha must be a positive number, got {show(self.alpha)}": _is_number(self.alpha)
            and self.alpha > 0,
            f"dropout must lie in [0, 1), got {show(self.dropout)}": _is_number(self.dropout)
            and 0 <= self.dropout < 1,
            f"adapt must be rows or course, got {self.adapt!r}": self.adapt in ("rows", "course"),
            f"rank_pattern must hold up to {MAX_ENTRIES} ranks from 1 to {MAX_RANK}, "
            f"got {show(self.rank_pattern)}": _all(_is_rank, self.rank_pattern),
            f"alpha_pattern must hold up to {MAX_ENTRIES} numbers, "
            f"got {show(self.alpha_pattern)}": _all(_is_number, self.alpha_pattern),
            f"targets must name at least one module, got {show(self.targets)}": bool(self.targets)
            and all(isinstance(target, str) and target for target in self.targets),
            f"token_ids must be whole numbers, got {show(self.token_ids)}": all(
                type(i) is int for i in self.token_ids
            ),
        }
        problems = [sentence for sentence, ok in checks.items() if not ok]
        if problems:
            raise ValueError("LoRA: " + "; ".join(problems))
        # Tried here, so that a misspelt one is refused by its name and not deep inside a search.
        regex = [self.targets] if isinstance(self.targets, str) else []
        for expression in (*regex, *self.rank_pattern, *self.alpha_pattern):
            _check_expression(expression)
        if regex:
            _check_expression(str(self.all_targets))  # what the adapter's file will hold

    @property
    def all_targets(self) -> tuple[str, ...] | str:
        """The targets, with embedding and head for the course's recipe."""
        ends = (f"model.{EMBEDDING}", HEAD)
        # Targets that name both ends stay as they are: a file read and written again is equal.
        if self.adapt == "rows" or all(_matches(self.targets, name) for name in ends):
            return self.targets
        if isinstance(
            self.targets, str
        ):  # one expression must match all, so it gets two more branches
            return rf"({self.targets})|model\.{EMBEDDING}|{HEAD}"
        return tuple(dict.fromkeys((*self.targets, EMBEDDING, HEAD)))

    def matches(self, name: str) -> bool:
        """True if the module path `name` is a target.

        Names match a path's last parts, a regular expression all of it.
        """
        return _matches(self.all_targets, name)

    def rank_of(self, name: str) -> int:
        """The rank of module path `name`."""
        return _lookup(self.rank_pattern, name, self.rank)

    def scaling_of(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) if rank-stabilised: the only place where it is computed."""
        # With alpha / sqrt(r) the size of the low-rank term does not shrink as the rank grows.
        rank, alpha = self.rank_of(name), _lookup(self.alpha_pattern, name, self.alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def to_peft(self, tied: bool) -> dict[str, Any]:
        """The content of `adapter_config.json`.

        An untied head has rows of its own, which PEFT wants named.
        """
        # In the course's recipe token ids are frozen rows, which PEFT has no name for.
        rows: Any = list(self.token_ids) if self.adapt == "rows" and self.token_ids else None
        if rows and self.trains_head_tokens and not tied:
            rows = {EMBEDDING: rows, HEAD: rows}
        targets = self.all_targets
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "trainable_token_indices": rows,
            "use_rslora": self.use_rslora,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "bias": "none",
            "inference_mode": True,
        }

    @classmethod
    def from_peft(cls, raw: dict[str, Any], where: str) -> "LoRAConfig":
        """Reads the content of an `adapter_config.json`.

        Raises: ValueError naming what is missing or not supported.
        """
        problems = []
        if raw.get("peft_type") != "LORA":
            problems.append(f"peft_type is {show(raw.get('peft_type'))}, expected 'LORA'")
        required = ("r", "lora_alpha", "target_modules")
        problems += [f"{name} is missing" for name in required if raw.get(name) is None]
        targets, rows = raw.get("target_modules") or (), _rows_by_module(raw)
        base = raw.get("base_model_name_or_path") or ""
        if not isinstance(base, str):
            problems.append(f"base_model_name_or_path must be a name, got {show(base)}")
        if not isinstance(targets, str | list | tuple):
            problems.append(f"target_modules must be names or an expression, got {show(targets)}")
            raw = raw | {"target_modules": []}  # the other problems are named too
        odd = _unsupported(raw)
        if odd:
            problems.append(f"not supported: {', '.join(odd)} (merge this adapter with PEFT first)")
        if problems:
            raise ValueError(f"{where}: " + "; ".join(problems))
        # The fields are checked by the class itself; here its sentence gets the file's name.
        try:
            return cls(
                rank=raw["r"],
                alpha=raw["lora_alpha"],
                dropout=raw.get("lora_dropout", 0.0),
                targets=targets if isinstance(targets, str) else tuple(targets),
                use_rslora=bool(raw.get("use_rslora")),
                rank_pattern=raw.get("rank_pattern") or {},
                alpha_pattern=raw.get("alpha_pattern") or {},
                token_ids=tuple(rows[EMBEDDING]),
                trains_head_tokens=HEAD in rows,
                base_model=base,
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error


def _rows_by_module(raw: dict[str, Any]) -> dict[str, Any]:
    # PEFT takes a list, for the embedding, or a dict with a list for each module.
    rows = raw.get("trainable_token_indices") or []
    return rows if isinstance(rows, dict) else {EMBEDDING: rows}


def _unsupported(raw: dict[str, Any]) -> list[str]:
    """The options of an `adapter_config.json` that change the result and are not supported."""
    odd = [f"{name}={show(raw[name])}" for name in UNSUPPORTED if raw.get(name)]
    if raw.get("bias", "none") != "none":
        odd.append(f"bias={show(raw['bias'])}")
    start = raw.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        odd.append(f"init_lora_weights={show(start)}")
    targets, ends = raw.get("target_modules") or (), (f"model.{EMBEDDING}", HEAD)
    # PEFT would then give both ends one delta; here they have two.
    if raw.get("ensure_weight_tying") and any(_matches(targets, name) for name in ends):
        odd.append("ensure_weight_tying=True with LoRA on embedding or head")
    rows = _rows_by_module(raw)
    # The same ids for both ends, or for the embedding alone: all that one list of ids can say.
    ids = rows.get(EMBEDDING)
    if not isinstance(ids, list) or set(rows) - {EMBEDDING, HEAD} or rows.get(HEAD, ids) != ids:
        odd.append(f"trainable_token_indices={show(raw['trainable_token_indices'])}")
    return odd


def _is_rank(value: Any) -> bool:
    # The type itself: True is an int for isinstance, and a rank of True would pass as 1.
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    # Finite in float32 too, also after a multiplication with a weight; NaN and infinity are not.
    return type(value) in (int, float) and abs(value) <= 1e12


def _all(check: Callable[[Any], bool], pattern: Any) -> bool:
    is_small = isinstance(pattern, dict) and len(pattern) <= MAX_ENTRIES
    return is_small and all(map(check, pattern.values()))


def _matches(targets: Any, name: str) -> bool:
    if isinstance(targets, str):
        return _is_full_match(targets, name)
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _lookup(pattern: dict[str, Any], name: str, default: Any) -> Any:
    """The value of the first key that matches the end of the path, as PEFT matches it."""
    # Each key is a regular expression for PEFT: the dot in "model.embed_tokens" matches anything.
    return next(
        (
            value
            for key, value in pattern.items()
            if _is_full_match(_ANY_PATH + (key if _PLAIN.fullmatch(key) else f"(?:{key})"), name)
        ),
        default,
    )


def _check_expression(text: str) -> None:
    """Raises: ValueError for what is no regular expression, or none that takes linear time."""
    if len(text) > MAX_EXPRESSION:
        raise ValueError(
            f"LoRA: expected an expression of at most {MAX_EXPRESSION} characters, "
            f"got {len(text)}: {show(text)}"
        )
    try:
        # PEFT will read it with Python's own, which has to accept it too.
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"LoRA: {show(text)} is not a regular expression ({error})") from error
    # Two spellings that both engines accept and read differently.
    odd = next((part for part in ("{,", "[:") if part in text), None)
    if odd:
        raise ValueError(f"LoRA: {show(text)}: expected an expression without {odd!r}; rewrite it")
    try:
        _is_full_match(text, "")
    except ValueError as error:
        raise ValueError(
            f"LoRA: {show(text)}: expected an expression without lookaround, backreference and the "
            f"like, which can take unbounded time, got {error}; rewrite it, or name the modules"
        ) from error


@lru_cache(maxsize=1 << 16)
def _is_full_match(expression: str, text: str) -> bool:
    """True if the expression matches all of `text`, in time linear in it.

    By RE2, which pyarrow brings along: Python's own engine backtracks, so that "(a+)+b" in an
    adapter's file, which comes from anywhere, would never end.
    Raises: ValueError for an expression that RE2 has no linear way for.
    """
    # Names, the usual case, need no second engine.
    if _PLAIN.fullmatch(expression.removeprefix(_ANY_PATH)):
        return re.fullmatch(expression, text) is not None
    import pyarrow.compute  # here, because names need none of it

    found = pyarrow.compute.match_substring_regex(
        pyarrow.array([text]), pattern=f"^(?:{expression})$"
    )
    return bool(found[0].as_py())


def parse_targets(text: str) -> tuple[str, ...] | str:
    """Comma-separated module names, or one regular expression."""
    # Anything that is not made of names, dots and commas must be an expression, commas included.
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    return names if all(re.fullmatch(r"[\w.]+", name) for name in names) else text
