"""What one run holds: its rows as packs, the model as a loss, and everything the loop needs."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.device import Precision, send
from data.chat import Example
from data.conversation import Conversation
from data.packing import Batch
from data.tokenizer import Tokenizer
from lora.config import LoRAConfig
from model.loss import find_supervised, supervised_loss
from model.transformer import Gemma2
from training.batches import StepBatches
from training.digests import BaseDigest
from training.loggers import Logger
from training.ranks import Ranks


@dataclass(frozen=True)
class Data:
    """What a run trains on and is measured with, read once."""

    tokenizer: Tokenizer
    batches: StepBatches
    held_out: list[Conversation]  # the first of these are asked and scored
    held_out_packs: list[list[Example]]  # the first of them, rendered, for the held-out loss
    questions: list[Conversation]  # by hand, scored on their own; the embedded rows have some
    shown: dict[str, Conversation]  # by kind: a question whose reply is shown before and after
    sample: Example  # what the screen shows of the training rows
    seen_tools: set[str]  # names that training offers or calls
    has_results: bool  # whether training shows what a tool returned, and the answer to it
    digest: str  # of all rows, as they were rendered


class StepLoss(nn.Module):
    """Hidden states and summed loss in one call.

    The sum is over the batch's supervised tokens, not yet divided; `scale` is the factor that the
    caller multiplies it with before `backward` (see `supervised_loss`). One module, because
    DistributedDataParallel watches the backward pass of what it wraps.
    """

    def __init__(self, model: Gemma2) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, scale: float = 1.0) -> torch.Tensor:
        device = self.model.model.norm.weight.device
        # All that the card needs of the batch goes there first, before it has work to wait for.
        tokens, positions = send(batch.tokens, device), send(batch.positions, device)
        supervised = find_supervised(batch.targets, device)
        # Document ids stay on the host: where documents end is looked up there.
        hidden = self.model.hidden(tokens, positions, batch.documents)  # (B, T, D)
        # The head meets only the supervised positions: (B, T, V) logits never exist.
        return supervised_loss(self.model, hidden, supervised, scale)[0]


@dataclass(frozen=True)
class Run:
    """Everything the loop needs. `step_loss` is a StepLoss, wrapped where several ranks train."""

    args: argparse.Namespace  # every setting, after the defaults were filled in
    ranks: Ranks
    output: Path
    data: Data
    model: Gemma2
    step_loss: nn.Module
    config: LoRAConfig  # written beside the adapter
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler  # passes everything through unless the precision is fp16
    precision: Precision
    base: BaseDigest | None  # of the frozen weights, on the rank that writes
    logger: Logger  # where metrics go besides metrics.jsonl

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.model.norm.weight.device

    @property
    def total_steps(self) -> int:
        """Optimizer steps from the first to the last, whether or not the run is resumed."""
        epochs = self.args.epochs * self.data.batches.steps_per_epoch
        return self.args.max_steps or math.ceil(epochs)
