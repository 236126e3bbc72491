"""Checkpoints that a kill or a full disk cannot damage: written beside, renamed into place, verified on reading."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.block import differences, flags_from, resolve_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_beside
from nnunetv2_ext.training.step import StepTrainer

FINAL, LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "previous", "best"))
FALLBACKS = (FINAL, LATEST, PREVIOUS, BEST)
REQUIRED_KEYS = ("network_weights", "current_epoch", "init_args", "trainer_name", "logging")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The verified content of one of our checkpoints, on the CPU.

    Raises:
        InputError: the file is missing, truncated or damaged, or is no checkpoint of a trainer.
    """
    remedy = "continue from an earlier checkpoint with --c, or train again"
    if not path.is_file():
        raise InputError(f"no file {path}", "a checkpoint", remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling damaged bytes raises anything
        raise InputError(f"the damaged checkpoint {path} ({error})", "a whole file", remedy) from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} without {', '.join(missing)}", "a checkpoint that a trainer wrote", remedy)
    return content


def is_readable(path: Path) -> bool:
    """Whether the file is a whole checkpoint."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


class CheckpointTrainer(StepTrainer):
    """nnU-Net's trainer with checkpoints that are whole at any moment, and a resume that verifies what it loads."""

    published_block: ClassVar[Mapping[str, Any]] = {}
    """What the method's paper does otherwise than nnU-Net; the plans' `training` block goes over it."""
    block: dict[str, Any]
    """The resolved training block."""
    resuming: bool
    """Whether the training goes on from a checkpoint."""
    folder_is_ours: bool
    """Whether the checkpoints in the folder are those of this training."""
    current_epoch: int

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            (Path(self.output_folder) / PREVIOUS).unlink(missing_ok=True)

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        path = Path(filename)
        keep_as = path.with_name(PREVIOUS) if path.name == LATEST and self.folder_is_ours else None
        try:
            write_beside(lambda part: super(CheckpointTrainer, self).save_checkpoint(str(part)), path, keep_as=keep_as)
        except OSError as error:
            if path.name == FINAL:  # without it the training is not finished, and nnU-Net would remove the latest one
                raise OSError(f"{error}. Free some space, then run the same command with --c") from error
            self.print_to_log_file(f"WARNING: {error}; the last good file stays, training goes on")
            return
        if not self.folder_is_ours:  # a training started anew: --c must not find what an earlier one left
            for name in set(FALLBACKS) - {path.name}:
                path.with_name(name).unlink(missing_ok=True)
            self.folder_is_ours = True

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load the newest whole checkpoint, falling back from a damaged one when a training is resumed.

        Raises:
            InputError: no whole checkpoint, one of another trainer, or (on resuming) of another `training` block.
        """
        requested = Path(filename_or_checkpoint)
        candidates = [requested]
        if self.resuming and requested.name in FALLBACKS:
            # nnU-Net does not know the previous one and asks for the best where there is no latest
            first = min(FALLBACKS.index(requested.name), FALLBACKS.index(PREVIOUS))
            others = (requested.with_name(name) for name in FALLBACKS[first:])
            candidates = [path for path in others if path == requested or path.is_file()]
        for path in candidates:
            try:
                content = read_checkpoint(path)
            except InputError as error:
                if path == candidates[-1]:
                    raise
                self.print_to_log_file(f"WARNING: {error} Falling back to an earlier checkpoint.")
                continue
            self._check_checkpoint(path, content)
            del content
            super().load_checkpoint(str(path))
            self.print_to_log_file(f"Loaded {path}, next epoch {self.current_epoch}")
            # nnU-Net writes the latest checkpoint before it notes a new best
            self._best_ema = max(self.logger.get_value("ema_fg_dice", step=None), default=None)
            return

    def _check_checkpoint(self, path: Path, content: dict[str, Any]) -> None:
        if content["trainer_name"] != type(self).__name__:
            raise InputError(
                f"{path} of the trainer {content['trainer_name']}",
                f"one of {type(self).__name__}",
                f"pass -tr {content['trainer_name']}",
            )
        if not self.resuming:
            return
        configuration = PlansManager(content["init_args"]["plans"]).get_configuration(self.configuration_name)
        before = resolve_block(configuration.configuration.get("training"), self.published_block)
        flags, plans = flags_from(self.block, before), self.plans_manager
        named = f"-d {plans.dataset_name} -p {plans.plans_name} -c {self.configuration_name}"
        restore = f"run nnunetv2_ext schedule {named} {' '.join(flags)}" if flags else "restore it in the plans"
        self._refuse_another("training block", differences(before, self.block), restore)
        # weights may fit another network: those of attention, for one, are the same for any number of heads
        held, now = (
            {key: content.get(key) for key in ("architecture", "patch_size")}
            for content in (configuration.configuration, self.configuration_manager.configuration)
        )
        self._refuse_another("network", differences(held, now, self.configuration_name))

    @staticmethod
    def _refuse_another(what: str, changed: list[str], restore: str = "restore it in the plans") -> None:
        if changed:
            raise InputError(
                f"a {what} that differs from the checkpoint's ({'; '.join(changed)})",
                f"the {what} that the training was started with",
                f"{restore}, or start anew without --c",
            )
