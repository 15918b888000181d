"""Training logs: terminal, TensorBoard and an optional experiment tracker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vla.training.checkpoint_gate import UNITS
from vla.training.tracking import Tracker, tracked
from vla.training.train_config import TrainConfig


@dataclass(frozen=True)
class Log:
    """Logs of the first rank; on other ranks it does nothing."""

    bar: Any
    writer: SummaryWriter | None
    tracker: Tracker | None = None

    def scalars(self, values: Mapping[str, float], step: int, prefix: str = "") -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(prefix + name, value, step)
        if self.tracker is not None:
            self.tracker.scalars({prefix + name: value for name, value in values.items()}, step)

    def write_line(self, line: str) -> None:
        if self.writer is not None:
            self.bar.write(line)

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Prints the scores of an evaluation, with the errors of action components on a second line."""
        units = {name.removeprefix(UNITS): value for name, value in values.items() if name.startswith(UNITS)}
        main = {name: value for name, value in values.items() if not name.startswith(UNITS)}
        self.write_line(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in main.items()))
        if units:
            self.write_line("  error of " + ", ".join(f"{name} {value:.3g}" for name, value in units.items()))


@contextmanager
def log(run: Path, start: int, plan: TrainConfig, first: bool) -> Iterator[Log]:
    """Opens the logs at step `start`; TensorBoard events of later steps are purged."""
    with tqdm(total=plan.steps, initial=start, desc="train", unit="step", smoothing=0.05, disable=not first) as bar:
        if not first:
            yield Log(bar, None)
            return
        with (
            SummaryWriter(str(run / "tensorboard"), purge_step=start) as writer,
            tracked(plan.log, run, asdict(plan)) as tracker,
        ):
            yield Log(bar, writer, tracker)
