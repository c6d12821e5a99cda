"""Nothing is lost: stops, two runs in a folder, foreign files, damaged checkpoints."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from benchmarks.small_run import SmallRun, differences
from data.chat import Example
from training import lock, run_folder, saving
from training.digests import rows_digest
from training.ranks import Ranks

State = Callable[[dict[str, Any]], Any]


@pytest.fixture
def done(truth: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(truth, tmp_path / "done")


class Killed(BaseException):
    """A kill: nothing in the program may catch it."""


def kill(*_: Any, **__: Any) -> None:
    raise Killed


# ------------------------------------------------------------------------- saved, then evaluated


def test_what_fails_in_the_last_evaluation_costs_no_step(
    small: SmallRun, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = train.evaluate, []

    def fail_at_the_end(*args: Any) -> Any:
        calls.append(1)
        return real(*args) if len(calls) < 3 else kill()  # of steps 0, 3 and 4

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", fail_at_the_end)
        with pytest.raises(Killed):
            train.main(small.flags(tmp_path / "out"))
    assert json.loads((tmp_path / "out/checkpoint/state.json").read_text())["step"] == 4
    assert [line["step"] for line in run_folder.read_metrics(tmp_path / "out")] == [0, 1, 2, 3]
    assert train.main(small.flags(tmp_path / "out", "--resume")) == 0
    assert differences(tmp_path / "out", truth) == []


@pytest.mark.parametrize("lost", ["adapter_model.safetensors", "adapter_config.json", "loss.png"])
def test_a_stop_between_checkpoint_and_adapter_is_made_good(
    small: SmallRun, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(saving, "publish", kill)
        with pytest.raises(Killed):
            train.main(small.flags(tmp_path / "out", "--save-every", "0"))
    # What a kill leaves, as the exception above did not: a half file, and the lock of a dead one.
    for name in (f"{lost}.partial", ".tmpAbCdEf"):
        (tmp_path / "out" / name).write_text("half")
        (tmp_path / "out" / name).chmod(0o600)
    assert train.main(small.flags(tmp_path / "out", "--resume", "--save-every", "0")) == 0
    # Saved once: there is no second generation.
    wanted = [name for name in differences(tmp_path / "out", truth) if "previous" not in name]
    assert wanted == []


def test_leftovers_go_as_soon_as_the_folder_is_opened(small: SmallRun, done: Path) -> None:
    """Before training: on a full disk they are what there is room for."""
    args = train.parse_args(small.flags(done, "--resume"))
    args.ranks = 1
    (done / "adapter_model.safetensors.partial").write_text("half")
    with run_folder.opened(args, Ranks(), print):
        assert not (done / "adapter_model.safetensors.partial").exists()


def test_a_foreign_file_of_such_a_name_stays(small: SmallRun, done: Path) -> None:
    (done / ".tmpAbCdEf").write_text("mine")  # readable by all: not one of safetensors'
    (done / "notes.partial").write_text("mine")
    assert train.main(small.flags(done, "--resume")) == 0
    assert (done / ".tmpAbCdEf").exists() and (done / "notes.partial").exists()


# --------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(
    small: SmallRun,
    truth: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    real = train.train_step

    def step_and_signal(run: Any, step: int) -> Any:
        if step == 3:
            os.kill(os.getpid(), number)
        return real(run, step)

    # Where the tests themselves were started with nohup, the signal would rightly be ignored.
    before = signal.signal(number, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", step_and_signal)
        assert train.main(small.flags(tmp_path / "out")) == 130
    signal.signal(number, before)
    assert json.loads((tmp_path / "out/checkpoint/state.json").read_text())["step"] == 3
    assert not (tmp_path / "out" / lock.LOCK).exists()
    assert train.main(small.flags(tmp_path / "out", "--resume")) == 0
    wanted = [name for name in differences(tmp_path / "out", truth) if "previous" not in name]
    assert wanted == []


def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.progress import interrupts

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------------- one run in a folder


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_live_run_is_refused_and_named(
    small: SmallRun, done: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    held = lock.Lock(done)
    try:
        assert train.main(small.flags(done, flag)) == 2
    finally:
        held.release()
    error = capsys.readouterr().err
    assert f"process {os.getpid()} on {socket.gethostname()}" in error and "since 20" in error
    assert before == {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}


def owner(**changes: Any) -> str:
    pid = os.getpid()
    started = lock._started(pid)
    return json.dumps(
        {"pid": pid, "started": started, "host": socket.gethostname(), "since": "x"} | changes
    )


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        (owner(), True),
        (owner(pid=1, started=lock._started(1)), True),
        (owner(host="elsewhere"), True),
        (owner(pid=2**22 + 1), False),  # beyond the largest number there is
        (owner(started="1 another boot"), False),
        (owner(pid="x"), False),
        ("", False),
        ("[1]", False),
        ("half", False),
    ],
    ids="mine init elsewhere gone reused-number no-number empty list half".split(),
)
def test_only_the_lock_of_a_dead_process_is_taken_over(
    tmp_path: Path, text: str, is_refused: bool
) -> None:
    path = tmp_path / lock.LOCK
    path.write_text(text)
    if is_refused:
        with pytest.raises(ValueError, match="has written there since x"):
            lock.Lock(tmp_path)
        assert path.read_text() == text
    else:
        lock.Lock(tmp_path).release()
        assert not path.exists()


def test_the_kernels_lock_refuses_whatever_the_file_says(tmp_path: Path) -> None:
    held = lock.Lock(tmp_path)
    held.path.write_text(owner(pid=2**22 + 1))  # as in a container with numbers of its own
    with pytest.raises(ValueError, match="has written"):
        lock.Lock(tmp_path)
    held.release()


# -------------------------------------------------------------------------------- foreign files


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "run.json", "checkpoint/mine.txt", "adapter_model.safetensors"]
)
def test_overwrite_deletes_no_file_that_no_run_wrote(
    small: SmallRun, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert train.main(small.flags(tmp_path / "out", "--overwrite")) == 2
    assert name.split("/")[0] in capsys.readouterr().err and path.read_text() == "{}"


def test_overwrite_deletes_no_checkpoint_that_holds_more(
    small: SmallRun, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (done / "checkpoint" / "mine.txt").write_text("mine")
    assert train.main(small.flags(done, "--overwrite")) == 2
    assert "mine.txt" in capsys.readouterr().err and (done / "checkpoint/mine.txt").exists()
    assert (done / "run.json").exists() and (done / "checkpoint/state.json").exists()


@pytest.mark.parametrize("flag", ["--overwrite", "--max-steps"])
def test_the_folder_of_the_base_is_refused(
    small: SmallRun, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(small.folder / "base", tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    link = tmp_path / "link"
    link.symlink_to(base)
    more = (flag,) if flag == "--overwrite" else (flag, "4")
    assert train.main([*small.flags(base, *more), "--model", str(link)]) == 2
    assert "--output" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in base.iterdir()}


def test_a_base_beside_a_runs_record_is_refused_too(
    small: SmallRun, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (small.folder / "base").iterdir():
        shutil.copy(path, done)
    assert train.main([*small.flags(done, "--overwrite"), "--model", str(done)]) == 2
    assert "is the folder of the base" in capsys.readouterr().err
    assert (done / "checkpoint/state.json").exists()


# ------------------------------------------------------------------------- checksums, generations


def flip(path: Path, place: float = 0.9) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-64:] = bytes(64)
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, zero, halve, Path.unlink])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_torn_checkpoint_gives_way_to_the_one_before(
    small: SmallRun,
    truth: Path,
    done: Path,
    damage: Callable[[Path], None],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(done / "checkpoint" / name)
    assert train.main(small.flags(done, "--resume")) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    assert (
        "done/checkpoint/state." in text
        and "going on from the checkpoint before it, of step 2" in text
    )
    # Saved once more, at step 4: the one of step 2 is the one before again.
    assert differences(done, truth) == []


def test_two_torn_checkpoints_are_refused(
    small: SmallRun, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("checkpoint", "checkpoint/previous"):
        flip(done / folder / "state.safetensors")
    before = (done / "metrics.jsonl").read_bytes()
    assert train.main(small.flags(done, "--resume")) == 2
    assert "start again with --overwrite" in capsys.readouterr().err
    assert (done / "metrics.jsonl").read_bytes() == before


def write_state(done: Path, change: State) -> None:
    """Changes state.json as a checkpoint from before the checksums could be; no older one."""
    shutil.rmtree(done / "checkpoint" / "previous")
    path = done / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    del state["sha256"]
    path.write_text(json.dumps(change(state)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {}, "step is missing"),
        (lambda s: [1], "expected a JSON object, got list"),
        (lambda s: s | {"step": "2"}, "step is '2', expected int"),
        (lambda s: s | {"step": True}, "step is True"),
        (lambda s: s | {"step": -1}, "at least 0"),
        (lambda s: s | {"step": 10**30}, "but the flags ask for 4"),
        (lambda s: s | {"scaler": [1]}, "scaler is [1], expected dict"),
        (lambda s: s | {"fingerprint": 5}, "fingerprint is 5"),
        (lambda s: s | {"fingerprint": {}}, "--rank was None and is 2"),
        (lambda s: s | {"precision": 1}, "precision is 1"),
        (lambda s: {k: v for k, v in s.items() if k != "scaler"}, "states do not fit"),
        (lambda s: s | {"rows": "0" * 64}, "rows"),
        (lambda s: s | {"base": "0" * 64}, "base"),
    ],
)
def test_a_spoiled_state_is_one_sentence(
    small: SmallRun, done: Path, change: State, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_state(done, change)
    assert train.main(small.flags(done, "--resume")) == 2
    error = capsys.readouterr().err
    assert words in error and str(done) in error and error.count("\n") == 1


def test_a_checkpoint_from_before_the_checksums_resumes(
    small: SmallRun, truth: Path, done: Path
) -> None:
    (done / "adapter_model.safetensors").unlink()
    write_state(
        done,
        lambda s: {k: s[k] for k in ("step", "scaler", "precision", "fingerprint")},
    )
    assert train.main(small.flags(done, "--resume")) == 0
    assert all("previous" in name for name in differences(done, truth))


@pytest.mark.parametrize("place", ["rows.jsonl", "base/model.safetensors"])
def test_other_rows_and_another_base_are_refused(
    small: SmallRun, done: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small.folder / place
    original, record = path.read_bytes(), (done / "run.json").read_bytes()
    times = path.stat()
    try:
        if place == "rows.jsonl":
            start = b'"human", "content": "'
            question = original.index(start) + len(start)
            path.write_bytes(original[:question] + b"Z" + original[question + 1 :])
        else:
            flip(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # neither size nor date differ
        assert train.main(small.flags(done, "--resume")) == 2
    finally:
        path.write_bytes(original)
    error = capsys.readouterr().err
    assert str(path.parent if "base" in place else path) in error and error.count("\n") == 1
    assert (done / "run.json").read_bytes() == record


def test_every_part_of_a_row_counts() -> None:
    rows = [Example([1, 2], [False, True], "a"), Example([3], [True], "b")]
    others = [
        [Example([1, 2], [True, True], "a"), rows[1]],  # what is learned
        [Example([1, 4], [False, True], "a"), rows[1]],  # what is read
        rows[::-1],
        [Example([1], [False], "a"), Example([2, 3], [True, True], "b")],  # the same, cut elsewhere
    ]
    digests = {rows_digest(x) for x in (rows, *others)}
    assert len(digests) == 5
    assert rows_digest([Example([1, 2], [False, True], "elsewhere"), rows[1]]) == rows_digest(rows)


def test_a_finished_run_goes_on_longer_and_says_so(
    small: SmallRun, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(small.flags(done, "--resume", "--max-steps", "6")) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    assert "4 steps were planned and are done, 6 are to be" in text
    lines = run_folder.read_metrics(done)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 3, 4, 6]
    assert lines[5]["lr"] == train.learning_rate(5, 6, 0.01, 0.1)
    # Fewer steps than are done, and other settings, are still refused.
    assert train.main(small.flags(done, "--resume", "--max-steps", "5")) == 2
    assert "6 steps are done" in capsys.readouterr().err
    assert train.main(small.flags(done, "--resume", "--max-steps", "9", "--rank", "3")) == 2


def test_an_unfinished_run_keeps_its_schedule(
    small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = train.train_step
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", lambda r, s: kill() if s == 3 else real(r, s))
        with pytest.raises(Killed):
            train.main(small.flags(tmp_path / "out"))
    assert train.main(small.flags(tmp_path / "out", "--resume", "--max-steps", "6")) == 2
    assert "--max-steps was 4 and is 6 (longer: once its 4 steps are done)" in (
        capsys.readouterr().err
    )


# ----------------------------------------------------------------------- odd checkpoints, metrics


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_checkpoint_that_is_no_folder_is_one_sentence(
    small: SmallRun, done: Path, flag: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, elsewhere = done / "checkpoint", done.parent / "elsewhere"
    directory.rename(elsewhere)
    if kind == "file":
        directory.write_text("x")
    else:
        directory.symlink_to(elsewhere if kind == "link" else done / "nowhere")
    assert train.main(small.flags(done, flag)) == 2
    assert f"{directory}: expected a folder" in capsys.readouterr().err
    assert (elsewhere / "state.json").exists() and (elsewhere / "previous").exists()


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[1]", b"5", b"\0\0\0", b"\xff\xfe", b'{"step": "1"}', b'{"step": 1, "loss": "x"}']
    + [b'{"step": 1, "shown": 3}', b'{"step": 1, "tool_call_accuracy": 3}', b"[" * 100_000],
)
def test_a_line_of_metrics_that_no_run_wrote_is_left_out(
    small: SmallRun, truth: Path, done: Path, line: bytes
) -> None:
    path = done / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert train.main(small.flags(done, "--resume")) == 0
    assert differences(done, truth) == []
