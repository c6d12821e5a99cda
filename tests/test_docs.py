"""README.md and docs/: every command parses, every block of Python runs, every figure has a row."""

import argparse
import importlib.util
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from agent.flags import check_flags, parse_args
from benchmarks.lora_cases import SIZES
from benchmarks.pictures import PICTURES, rows_of
from common.constants import EMBEDDED_MODEL
from data.chat import render
from data.packing import collate
from data.schema import parse_row
from data.tokenizer import Tokenizer
from model.config import Gemma2Config
from serve.errors import ApiError
from serve.fields import FIELDS
from training import settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
LINKED = [*PAGES, *(ROOT / "benchmarks").glob("*.md"), ROOT / "data" / "examples" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Programs that are not this project's; a page that names one says whether it was tried
FOREIGN = {"curl", "transformers", "vllm", "ollama", "llama-server", "convert_hf_to_gguf.py"}
PACKAGES = {"torch==2.13.0", "transformers[serving]", "vllm"}  # of pip, besides this project


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text("utf-8")) if kind == language]


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of every line of a table that is neither its head nor the rule under it."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("| ") and not following.startswith("|--"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


# ------------------------------------------------------------------------------ form and links


@each_page
def test_a_page_is_short(page: Path) -> None:
    count = len(page.read_text("utf-8").splitlines())
    assert count <= (150 if page == README else 200)


def anchors(page: Path) -> set[str]:
    """The names under which GitHub finds a page's headings."""
    heads = HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", LINKED, ids=page_name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in LINK.findall(text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page_name(page)}: {target}"
        assert not anchor or anchor in anchors(file), f"{page_name(page)}: {target}"


def test_every_picture_is_drawn_and_shown() -> None:
    drawn = {path.stem for path in (ROOT / "docs" / "pictures").iterdir()}
    assert drawn == set(PICTURES)
    shown = " ".join(page.read_text("utf-8") for page in PAGES)
    for name in drawn:
        assert f"pictures/{name}.png" in shown
        assert (ROOT / "docs" / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_reading_order_names_files_that_exist_and_no_core_file_is_missing() -> None:
    part = README.read_text("utf-8").split("## Reading order")[1].split("\n## ")[0]
    names = re.findall(r"[\w/-]+\.(?:py|md)\b|\b\w+/\w+/", part)
    for name in names:
        assert (ROOT / name).exists(), name
    core = "train.py infer.py agent/agent.py data/chat.py data/tokenizer.py data/packing.py"
    core += " model/attention.py model/layers.py model/fused.py model/transformer.py model/loss.py"
    core += " lora/reference.py lora/layer.py lora/inject.py lora/adapter.py"
    assert set(core.split()) <= set(names)
    # The plain formula stands before its fast form
    assert names.index("model/attention.py") < names.index("model/attention_tiles.py")
    assert names.index("lora/reference.py") < names.index("lora/steps.py")


# ------------------------------------------------------------------------------------ commands


class Parsed(BaseException):
    """A command line was read to its end; nothing that catches errors may catch it."""


def commands(page: Path) -> Iterator[str]:
    """Every command of a page: in its blocks of shell, and between backticks."""
    for body in blocks(page, "bash"):
        yield from re.sub(r"\\\n", " ", body).splitlines() if "curl" not in body else [body]
    for body in blocks(page, "console"):
        yield from (line[2:] for line in body.splitlines() if line.startswith("$ "))
    text = FENCE.sub("", page.read_text("utf-8"))
    yield from re.findall(r"`((?:python|pip|torchrun) [^`]+)`", text)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads one command with the program's own parser. Raises: SystemExit, ValueError."""
    if words[0] == "torchrun":
        words = ["python", *words[2:]]
    if words[:3] == ["python", "-m", "pytest"]:
        for word, before in zip(words[3:], words[2:], strict=False):
            known = word in ("-n", "--parity-rows") or before in ("-n", "--parity-rows")
            assert known or (ROOT / word).exists(), word
    elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] not in FOREIGN:
        monkeypatch.setattr("sys.argv", words[2:])
        with pytest.raises(Parsed):
            runpy.run_module(words[2], run_name="__main__")
    elif words[:2] == ["python", "train.py"]:
        # A page's card is not here
        monkeypatch.setattr(settings, "pick_device", lambda name: torch.device("cpu"))
        train.parse_args(words[2:])
    elif words[:2] == ["python", "infer.py"]:
        check_flags(parse_args(words[2:]))
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        extras = {f".[{extra}]" for extra in project["optional-dependencies"]}
        named = [w for w in words[2:] if not w.startswith(("-", "http"))]
        assert set(named) <= extras | PACKAGES | {"."}, named
    else:
        names = {word.partition(".")[0] if "." in word else word for word in words[:3]}
        assert not FOREIGN.isdisjoint({*names, *words[:3]}), words


@each_page
def test_every_command_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    read = argparse.ArgumentParser.parse_args

    def stop(self: Any, args: Any = None, namespace: Any = None) -> Any:
        read(self, args, namespace)
        raise Parsed

    count = 0
    for line in commands(page):
        for command in line.split("&&") if "curl" not in line else [line]:
            words = shlex.split(command, comments=True)
            with monkeypatch.context() as patched:
                if words[:2] == ["python", "-m"]:
                    patched.setattr(argparse.ArgumentParser, "parse_args", stop)
                try:
                    if words:
                        parse(words, patched)
                        count += 1
                except (SystemExit, ValueError) as error:
                    pytest.fail(f"{page_name(page)}: {command}: {error}")
    assert count or page.name == "glossary.md"


def test_a_wrong_flag_in_a_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("python train.py --lorarank 4", "python infer.py --tool x"):
        with pytest.raises(SystemExit):
            parse(shlex.split(wrong), monkeypatch)
    with pytest.raises(AssertionError):
        parse(["frobnicate", "x"], monkeypatch)


def test_what_serving_says_was_tried_has_a_row() -> None:
    text = (ROOT / "docs" / "serving.md").read_text("utf-8")
    rows = {row["program"]: row for row in rows_of("serve_check.jsonl")}
    names = {"Transformers' `serve`": "transformers", "vLLM": "vllm", "llama.cpp": "llama.cpp"}
    for name, program in names.items():
        assert f"| {name} {rows[program]['version']}" in text
        assert rows[program]["calls"] and rows[program]["same_greedy_ids"]
    assert "| Ollama | a merged folder and its Modelfile | no |" in text
    assert "ollama" not in rows


def test_serving_names_the_fields_that_the_server_takes() -> None:
    text = " ".join((ROOT / "docs" / "serving.md").read_text("utf-8").split())
    _, free, fixed = re.split("- Fields ", text.partition(" All else is a 400")[0])
    names = re.findall("`(.*?)`", fixed)
    assert sorted(re.findall("`(.*?)`", free) + names) == sorted(FIELDS)
    for name in names:
        for odd in (5, "x", [1], True):  # none of them is the one value
            with pytest.raises(ApiError, match=f"{name}: expected"):
                FIELDS[name](name, odd)


# ---------------------------------------------------------------------------------------- code


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=page_name)
def test_the_python_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "import peft" in page.read_text("utf-8") or "from peft" in page.read_text("utf-8"):
        pytest.importorskip("peft")
    for folder in ("data", "embedded"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    # In one namespace: a block goes on where the one above it ended
    for number, body in enumerate(blocks(page, "python"), start=1):
        exec(compile(body, f"{page.name}, block {number}", "exec"), names)
    if page == README:
        losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
        assert len(losses) == 8 and losses[-1] < 0.7 * losses[0]  # it has learned something
        assert (tmp_path / "runs" / "fifteen" / "adapter_model.safetensors").is_file()


def test_readmes_three_rows_are_what_training_gets() -> None:
    (block,) = [body for body in blocks(README, "text") if body.startswith("token")]
    shown = [line.split() for line in block.splitlines()]
    tokenizer = Tokenizer.from_pretrained(EMBEDDED_MODEL)
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4."},
    ]
    batch = collate([[render(parse_row({"messages": messages}), tokenizer)]], tokenizer.pad_id)
    words = {"<start_of_turn>": "S", "<end_of_turn>": "E", "\n": "\\n", " ": "\u2423"}
    pieces = [tokenizer.decode([id]) for id in batch.tokens[0].tolist()]
    tokens = [words.get(piece, piece) for piece in pieces]
    mask = [str(int(target >= 0)) for target in batch.targets[0].tolist()]
    assert shown == [
        ["token", *tokens],
        ["target", *tokens[1:], "-"],
        ["mask", *mask[:-1], "-"],
    ]


def shown_tools() -> Any:
    path = ROOT / "embedded" / "shown" / "tools.py"
    spec = importlib.util.spec_from_file_location("shown_tools", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demos_tools_are_real_and_in_no_row() -> None:
    (body,) = blocks(README, "console")
    lines = dict(line.split(": ", 1) for line in body.splitlines() if ": " in line)
    call, result = json.loads(lines["tool_call"]), json.loads(lines["tool_response"])
    tools = shown_tools()
    assert json.loads(result["content"]) == getattr(tools, call["name"])(**call["arguments"])
    names = [name for name, value in vars(tools).items() if callable(value)]
    assert call["name"] in names and len(names) == 3
    for file in (ROOT / "embedded" / "rows").glob("*.jsonl"):
        text = file.read_text("utf-8")
        assert not [name for name in names if name in text], file


# ------------------------------------------------------------------------------------- figures


def last_evaluation() -> dict[str, Any]:
    return rows_of("default_run.jsonl")[-1]


def share(kind: str) -> str:
    accuracy = last_evaluation()["tool_call_accuracy"]
    return f"{100 * accuracy[kind]:.0f}% of {accuracy['n'][kind]}"


def by_hand() -> str:
    accuracy = last_evaluation()["questions_accuracy"]
    return f"{accuracy['overall'] * accuracy['n']['overall']:.0f} of {accuracy['n']['overall']}"


def steps(
    config: str, dtype: str = "bf16", *, way: str = "peft"
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Our row of a whole step and a peer's of the same run, for every run of both."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for row in rows_of("train_step_cpu_zen5.jsonl"):
        if row["name"] != "train_step" or (row["config"], row["dtype"]) != (config, dtype):
            continue
        if row["impl"] == "ours":
            ours = row
        elif row["impl"] == way:
            found.append((ours, row))
    return found


def ratio(config: str) -> float:
    """PEFT's time over ours, in the run where it is least."""
    return min(peft["p50_ms"] / ours["p50_ms"] for ours, peft in steps(config))


def memory_of_theirs() -> str:
    ours, peft = steps("2b")[0]
    return f"{100 * ours['peak_bytes'] / peft['peak_bytes']:.0f}%"


def parity(what: str) -> str:
    (row,) = [row for row in rows_of("parity.jsonl") if row["what"].startswith(what)]
    return f"{row['worst']:.1e}".replace("e-0", "e-")


def trained_numbers() -> int:
    """LoRA's factors of Gemma-2-2B at rank 16, and the rows of the eight tags."""
    config = Gemma2Config(256_008)
    factors = 16 * sum(size_in + size_out for size_in, size_out in SIZES.values())
    return config.num_hidden_layers * factors + 8 * config.hidden_size


def logged(figure: str) -> str:
    text = (ROOT / "benchmarks" / "LOG.md").read_text("utf-8")
    section = text.split("## The two commands on an empty machine")[1].split("\n## ")[0]
    assert figure in section
    return figure


# By the beginning of the first column: the figure that its row, or the log, gives
MEASURED: dict[str, Callable[[], str]] = {
    "the program and": lambda: logged("91 s"),
    "the tests and": lambda: logged("5 minutes"),
    "exact calls on": lambda: share("unseen"),
    "two calls or": lambda: share("parallel"),
    "no call due": lambda: share("no_call"),
    "one call, of a tool seen": lambda: share("seen"),
    "sixty of someone else's questions": by_hand,
    "held-out loss": lambda: f"{last_evaluation()['eval_loss']:.2f} nats",
    "a step of": lambda: f"{ratio('2b'):.2f} x faster",
    "its peak": memory_of_theirs,
    "the same of 100 M": lambda: f"{ratio('100m'):.2f} x faster",
    "adapter of": lambda: f"{4 * trained_numbers() / 1e6:.0f} MB",
    "logits against": lambda: parity("logits"),
    "outputs against": lambda: parity("outputs"),
    "gradients against": lambda: parity("gradients"),
    "anything on a GPU": lambda: "not measured",
}


def test_every_figure_of_the_results_is_its_rows() -> None:
    part = README.read_text("utf-8").split("## Results")[1].split("\n## ")[0]
    rows = list(table_rows(part))
    assert len(rows) == len(MEASURED)
    for what, figure, command, device in rows:
        (found,) = [value for start, value in MEASURED.items() if what.startswith(start)]
        assert figure == found(), what
        assert command.startswith("`")
        if command == "`python train.py`":
            threads = re.findall(r"(\d+) threads", last_evaluation()["device"])
            assert device.split()[0] == threads[0], what
    before = rows_of("default_run.jsonl")[0]
    assert f"after training, {before['eval_loss']:.2f} before" in part
    accuracy = before["tool_call_accuracy"]
    assert not any(accuracy[kind] for kind in ("seen", "unseen", "parallel"))


def attributed(file: str, config: str) -> dict[str, str]:
    """By part, the share of the step in plain forms that ours saves."""
    (row,) = [r for r in rows_of(file) if r["name"] == "attribution" and r["config"] == config]
    return {
        part: f"{100 * ms / row['p50_ms']['plain']:.0f}%" for part, ms in row["saved_ms"].items()
    }


def test_a_ratio_is_attributed_to_its_parts() -> None:
    text = re.sub(r"\s+", " ", README.read_text("utf-8"))
    of = attributed("attribution_cpu_epyc.jsonl", "tiny")
    assert f"LoRA saves {of['lora']}, attention {of['attention']}, the loss {of['loss']}" in text
    of = attributed("train_step_cpu_zen5.jsonl", "2b")
    assert f"of the 2B's LoRA {of['lora']}, the loss {of['loss']};" in text
    of = attributed("train_step_cpu_zen5.jsonl", "100m")
    said = f"the 100 M's LoRA {of['lora']}, attention {of['attention']}, the loss {of['loss']}"
    assert said in text


def test_the_real_gemmas_ratios_are_those_of_its_rows() -> None:
    steps = [r for r in rows_of("train_step_cpu_zen5.jsonl") if r["config"] == "270m"]
    step = {r["impl"]: r["p50_ms"] for r in steps if r["supervised"] == 77}
    token = {r["impl"]: r["p50_ms"] for r in rows_of("generate_cpu_zen5.jsonl") if "impl" in r}
    said = f"{step['peft'] / step['ours']:.1f} x as long for a step, "
    said += f"{token['peft'] / token['one']:.1f} x for a token"
    assert said in README.read_text("utf-8")


def test_what_the_base_knew_is_what_its_pretraining_measured() -> None:
    record = json.loads((EMBEDDED_MODEL / "pretrain.json").read_text("utf-8"))
    found = record["stages"][-1]["held_out"]
    pick, fill = (f"{100 * found[name]:.0f}%" for name in ("one_pick", "one_fill"))
    text = re.sub(r"\s+", " ", README.read_text("utf-8"))
    assert f"it chooses right in {pick} and fills right in {fill} of single requests" in text
    count = Gemma2Config.from_json(EMBEDDED_MODEL).num_parameters
    assert f"({count / 1e6:.1f} million parameters)" in text


def test_the_pages_own_tables_are_their_rows() -> None:
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    for config, dtype in (("2b", "bf16"), ("100m", "bf16"), ("tiny", "bf16"), ("tiny", "fp32")):
        peers = zip(steps(config, dtype), steps(config, dtype, way="peft_16bit"), strict=True)
        for (ours, peft), (_, half) in peers:
            times = " | ".join(f"{row['p50_ms'] / 1e3:.2f}" for row in (ours, peft, half))
            ratios = " | ".join(f"{row['p50_ms'] / ours['p50_ms']:.2f}" for row in (peft, half))
            peaks = "-"
            if ours.get("peak_bytes"):
                peaks = f"{ours['peak_bytes'] / 1e9:.2f}, {peft['peak_bytes'] / 1e9:.2f}"
            floor = f"{100 * ours['of_floor']:.0f}%"
            assert f"| {dtype} | {times} | {ratios} | {floor} | {peaks} |" in text
    for row in rows_of("parity.jsonl"):
        assert f"| {row['what']} | {parity(row['what'])} | {row['comparisons']:,} |" in text
    rows = rows_of("adapters_cpu.jsonl")
    found = [r["x_first"] for r in rows if r["impl"] == "grouped" and r["config"] == "tiny"]
    assert ", ".join(f"{x:.2f}" for x in found) + " x for the embedded model" in text
    for figure in (share("unseen"), share("parallel"), share("no_call"), share("seen")):
        percent, _, count = figure.partition(" of ")
        assert re.search(rf"of {count} \| {percent} \|", text), figure
    assert f"| someone else's questions, of 60 | {by_hand().split()[0]} |" in text


def test_the_share_that_trains_is_right() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "how-it-works.md").read_text("utf-8"))
    trained, whole = trained_numbers(), Gemma2Config(256_008).num_parameters
    assert f"{trained / 1e6:.1f} million numbers train, {100 * trained / whole:.1f}%" in text


def test_the_log_begins_with_a_line_for_each_of_its_experiments() -> None:
    text = (ROOT / "benchmarks" / "LOG.md").read_text("utf-8")
    table, diary = text.split("\n# The diary\n")
    named = [re.sub(r"\[(.*)\]\(.*\)", r"\1", cells[0]) for cells in table_rows(table)]
    # A new experiment needs a line in the table: what was tried, expected, measured, kept
    assert named == re.findall(r"^## (.+)$", diary, re.MULTILINE)
    assert all(len(cells) == 5 and all(cells) for cells in table_rows(table))


def test_the_glossary_has_the_words_that_a_run_prints() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    terms = [cells[0] for cells in table_rows(text)]
    words = "adapter held-out exact pack supervised rank alpha nats floor Hermes merge softcap tied"
    words += " repaired seen unseen parallel free checkpoint epoch step token tool LoRA Triton clip"
    missing = [w for w in words.split() if not any(w.lower() in term.lower() for term in terms)]
    assert not missing
