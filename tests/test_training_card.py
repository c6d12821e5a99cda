"""The model card, the base's name that PEFT finds, and --push against a hub on the loopback."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import torch

import train
from agent.loading import EMBEDDED_MODEL, load_model, model_folder
from training import card

FLAGS = "--device cpu --dtype fp32 --max-steps 1 --eval-calls 2 --eval-rows 1 --max-length 512"


class Hub(BaseHTTPRequestHandler):
    """The requests of a push; `files` is what arrived."""

    files: dict[str, bytes] = {}
    made: list[str] = []
    refuses_commits = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            name = "/".join(
                filter(None, (json.loads(body).get(k) for k in ("organization", "name")))
            )
            if name.startswith("stranger"):
                self.answer(403, {"error": "You don't have the rights"})
                return
            self.made.append(name)
            self.answer(200, {"url": f"https://huggingface.co/{name}"})
        elif self.path == "/api/validate-yaml":  # of the card
            self.answer(200, {"warnings": [], "errors": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": entry["path"], "uploadMode": "regular", "shouldIgnore": False}
                for entry in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/commit/main") and not self.refuses_commits:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            url = "https://huggingface.co/me/calls/commit/0123456789"
            self.answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})
        else:
            self.answer(500, {"error": "full"})

    def do_GET(self) -> None:
        self.answer(404, {"error": "not here"})

    def answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on the loopback. HF_ENDPOINT is read at import, so the constant is set as well."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", address)
    original = huggingface_hub.HfApi.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{"endpoint": address, "token": "hf_test", **kwargs})

    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", init)
    Hub.files, Hub.made, Hub.refuses_commits = {}, [], False
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*FLAGS.split(), "--output", str(folder)]) == 0
    return folder


def test_the_card_says_how_to_load_and_what_was_measured(run: Path) -> None:
    text = (run / "README.md").read_text()
    assert text.startswith("---\n") and 'library_name: "peft"' in text
    assert 'license: "apache-2.0"' in text and "base_model:" not in text  # no hub id to name
    assert "base.resize_token_embeddings(len(tokenizer), mean_resizing=False)" in text
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    measured = [line["tool_call_accuracy"] for line in lines if line.get("tool_call_accuracy")]
    shares = " | ".join(f"{100 * accuracy['overall']:.0f}% of 2" for accuracy in measured)
    assert f"| overall | {shares} |" in text
    assert "--merge" in text and "new_rows" not in text


def test_the_card_of_a_hub_base_names_it(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "adapter_config.json", "metrics.jsonl"):
        text = (run / name).read_text()
        text = text.replace(json.dumps(str(EMBEDDED_MODEL)), '"google/gemma-2-2b-it"')
        text = text.replace('"model": null', '"model": "google/gemma-2-2b-it"')
        text = text.replace('"dataset": null', '"dataset": ["owner/rows"]')
        (tmp_path / name).write_text(text)
    (tmp_path / "new_rows.safetensors").touch()
    card.write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert 'base_model: "google/gemma-2-2b-it"' in text and 'license: "gemma"' in text
    assert 'datasets: ["owner/rows"]' in text and 'rows["embed_tokens"]' in text


def test_a_base_folders_own_card_gives_the_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert card._licence(str(tmp_path)) == "mit" and card._licence("owner/other") is None


def test_peft_finds_the_embedded_base(run: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(
        run, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours, tokenizer = load_model(None, run, device="cpu", dtype="fp32")
    tokens = torch.tensor([[2, 4, *range(300, 340), tokenizer.tag_ids["<think>"]]])
    with torch.no_grad():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-3
    assert len(tokenizer) == ours.config.vocab_size


def test_an_adapter_of_another_machine_finds_this_one_s_base() -> None:
    assert model_folder("/nowhere/else/embedded/weights") == EMBEDDED_MODEL
    assert model_folder("embedded") == EMBEDDED_MODEL
    with pytest.raises(FileNotFoundError):
        model_folder("/nowhere/else/weights")


def test_a_push_uploads_all_but_the_checkpoint(run: Path, hub: type[Hub]) -> None:
    command = ["--resume", "--output", str(run), "--push", "me/calls"]
    assert train.main([*FLAGS.split(), *command]) == 0
    assert hub.made == ["me/calls"]
    assert set(hub.files) == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "loss.png"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert (run / "checkpoint").is_dir()
    weights = (run / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    config = json.loads(hub.files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "embedded"  # no path of this machine


def test_a_wrong_repository_is_said_before_anything_is_trained(
    tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stranger/calls", "no/such/name"):
        folder = tmp_path / name.replace("/", "_")
        assert train.main([*FLAGS.split(), "--output", str(folder), "--push", name]) == 2
        assert f"--push {name}: expected a repository" in capsys.readouterr().err
        assert not (folder / "metrics.jsonl").exists()
    assert not hub.files


def test_an_upload_that_fails_keeps_the_run(
    run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses_commits = True
    command = ["--resume", "--output", str(run), "--push", "me/calls"]
    assert train.main([*FLAGS.split(), *command]) == 1
    assert "the adapter is whole in" in capsys.readouterr().err
    assert (run / "adapter_model.safetensors").is_file()
