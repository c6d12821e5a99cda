"""A run written down and taken up again: the checkpoint, then what other programs read."""

from common.device import rng_state, set_rng_state
from lora.adapter import save_adapter
from training import checkpoint, run_folder
from training.card import write_card
from training.report import draw_loss
from training.run import Run
from training.settings import fingerprint


def save(run: Run, step: int) -> None:
    """Writes the checkpoint first, since nothing else can be made again; then the adapter,
    the tokenizer, the picture and the card."""
    is_writer = run.ranks.is_first
    checkpoint.save_checkpoint(
        run.output / run_folder.CHECKPOINT,
        run.model,
        optimizer=run.optimizer,
        rng=run.ranks.gather(rng_state(run.device)),
        # `fingerprint` is compared before anything is loaded, the rest while it is.
        counters={
            "step": step,
            "scaler": run.scaler.state_dict(),
            "precision": run.precision.name,
            "fingerprint": fingerprint(run.args),
        },
        is_writer=is_writer,
    )
    save_adapter(run.model, run.output, run.config, is_writer)
    if is_writer:
        run.data.tokenizer.save(run.output)
        draw_loss(run.output)
        write_card(run.output)


def resume(run: Run) -> int:
    """Puts the run back to its checkpoint; returns the last step that was done.

    Raises: ValueError for a checkpoint of another precision or another model.
    """
    folder = run.output / run_folder.CHECKPOINT
    counters = checkpoint.read_counters(folder)
    then, now = counters.get("precision", run.precision.name), run.precision.name
    if then != now:
        raise ValueError(
            f"{run.output}: was trained in {then}, this device would go on in {now}; "
            f"give --dtype {then}, or start again with --overwrite"
        )
    states = checkpoint.load_checkpoint(folder, run.model, run.optimizer)
    # Of several ranks each has its own generators: the states carry the rank's number.
    mine = {name.removesuffix(f".{run.ranks.index}"): state for name, state in states.items()}
    # Last, after everything that may draw: dropout must go on where it stopped.
    set_rng_state(mine, run.device)
    run.scaler.load_state_dict(counters["scaler"])
    if run.ranks.is_first:
        run_folder.keep_metrics_until(run.output, counters["step"])
    return int(counters["step"])
