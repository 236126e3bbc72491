"""Checkpoints that a kill or a full disk cannot damage: written beside, renamed into place, verified on reading."""

import math
import shutil
from collections.abc import Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.block import differences, flags_from, resolve_block
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import unwritable, write_beside
from nnunetv2_ext.locks import hold, let_go
from nnunetv2_ext.text import listed, one_line
from nnunetv2_ext.training.step import StepTrainer
from nnunetv2_ext.weights.checkpoint import (
    differing_weights,
    not_finite,
    of_optimizer,
    optimizer_faults,
    read_checkpoint,
)
from nnunetv2_ext.weights.files import BEST, FINAL, LATEST, PREVIOUS, UNFINISHED, ForeignObject, restricted_unpickling

FALLBACKS = (FINAL, *UNFINISHED)
BESIDE = ("plans.json", "dataset.json", "dataset_fingerprint.json")
"""What a model's folder holds beside its folds."""


def moving_dice(log: Mapping[str, Any]) -> float:
    """The moving pseudo Dice by which nnU-Net chooses the best epoch, of a log's last one; -inf where there is none."""
    values = log.get("ema_fg_dice") or [-math.inf]
    return float(values[-1]) if math.isfinite(values[-1]) else -math.inf


def configuration_of(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a checkpoint was trained with.

    Raises:
        InputError: the plans in it lack anything.
    """
    made_with = content["init_args"]
    try:
        configuration = PlansManager(made_with["plans"]).get_configuration(made_with["configuration"])
    except Exception as error:  # nnU-Net fails in many ways at damaged plans
        raise InputError(
            f"the damaged checkpoint {path} (plans without {one_line(error)})", "whole plans", "train the fold anew"
        ) from error
    return dict(configuration.configuration)


def network_changes(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> list[str]:
    """In what the network of a configuration was changed.

    Weights may fit another network: those of attention, for one, are the same for any number of heads.
    """
    held, wanted = ({key: content.get(key) for key in ("architecture", "patch_size")} for content in (before, now))
    return differences(held, wanted, name)


def task_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what the task of a dataset.json was changed: what goes in, and what the outputs mean."""
    keys = ("labels", "regions_class_order")
    held, wanted = (
        {"channel_names": channel_names(content), **{key: content.get(key) for key in keys}}
        for content in (before, now)
    )
    return differences(held, wanted, "dataset.json")


class CheckpointTrainer(StepTrainer):
    """nnU-Net's trainer with checkpoints that are whole at any moment, and a resume that verifies what it loads."""

    published_block: ClassVar[Mapping[str, Any]] = {}
    """What the method's paper does otherwise than nnU-Net; the plans' `training` block goes over it."""
    block: dict[str, Any]
    """The resolved training block."""
    resuming: bool
    """Whether the training is to go on from a checkpoint."""
    goes_on = False
    """Whether a checkpoint was loaded that the training goes on from."""
    begins = False
    """Whether the training is about to begin, if its data are sound."""
    current_epoch: int

    @property
    def bare_network(self) -> Any:
        """The network itself, without the wrappers of DDP and torch.compile."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def initialize(self) -> None:
        fold = Path(self.output_folder)
        if self.local_rank == 0:
            hold(fold.parent, fold.name, "a training")
        super().initialize()

    def run_training(self) -> None:
        try:
            super().run_training()
        except BaseException:
            self._let_go()
            raise

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        try:
            super().perform_actual_validation(save_probabilities)
        finally:  # with it a training ends
            self._let_go()

    def _let_go(self) -> None:
        fold = Path(self.output_folder)
        if self.local_rank == 0:
            let_go(fold.parent, fold.name)

    def on_train_start(self) -> None:
        if not self.was_initialized:  # what fails there fails before anything is moved
            self.initialize()
        previous = Path(self.output_folder) / PREVIOUS
        if self.resuming and not self.goes_on and previous.is_file():  # nnU-Net does not know this one
            self.load_checkpoint(str(previous))
        self.begins = True
        super().on_train_start()

    def get_dataloaders(self) -> tuple[Any, Any]:
        loaders = super().get_dataloaders()  # the fold and its data are sound if this returns
        if self.begins and self.local_rank == 0:
            self.make_room()
        self.begins = False
        return loaders

    def make_room(self) -> None:
        """Remove what a kill left half-written; move aside an earlier training that this one does not go on from.

        It becomes a model folder of its own, which prediction reads: `before-DATE/fold_0` with plans.json and
        dataset.json. Names like `fold_0.before` would not do, nnU-Net takes whatever begins with `fold_` for a fold.

        Raises:
            InputError: the earlier training cannot be moved.
        """
        fold = Path(self.output_folder)
        try:
            for part in fold.glob("checkpoint_*.pth.part"):
                part.unlink(missing_ok=True)
            if self.goes_on or not any((fold / name).is_file() for name in FALLBACKS):
                return
            finished = (fold / FINAL).is_file()
            moved = _move_aside(fold)
            fold.mkdir(exist_ok=True)
            for name in (Path(self.log_file).name, "wandb"):  # what this training has begun
                if (moved / name).exists():
                    (moved / name).rename(fold / name)
        except OSError as error:
            raise unwritable(fold, error) from error
        kind = "finished" if finished else "unfinished"
        self.print_to_log_file(f"The {kind} training that {fold} held is kept in {moved}; remove it if nobody needs it")

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            (Path(self.output_folder) / PREVIOUS).unlink(missing_ok=True)

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        path = Path(filename)
        if not self._is_finite():
            whole = [name for name in UNFINISHED if path.with_name(name).is_file()]
            what = "weights that are no finite numbers any more"
            if path.name == FINAL:
                kept = f"{listed(whole)} in {path.parent} are from before" if whole else "no earlier checkpoint is left"
                raise InputError(what, "a network that has learned", f"train with a lower --lr or --grad-clip; {kept}")
            self.print_to_log_file(f"WARNING: {what}; {path.name} is not written, the last good one stays")
            return
        keep_as = path.with_name(PREVIOUS) if path.name == LATEST else None
        try:
            write_beside(lambda part: super(CheckpointTrainer, self).save_checkpoint(str(part)), path, keep_as=keep_as)
        except OSError as error:
            if path.name == FINAL:  # without it the training is not finished, and nnU-Net would remove the latest one
                raise OSError(f"{error}. Free some space, then run the same command with --c") from error
            self.print_to_log_file(f"WARNING: {error}; the last good file stays, training goes on")
            if path.name == BEST:  # the next epoch that is better than what is on the disk is to be written
                self._best_ema = _finite(_dice_in(path))

    def _is_finite(self) -> bool:
        moments = of_optimizer(self.optimizer.state_dict()["state"])
        return not not_finite(self.bare_network.state_dict()) and not not_finite(moments)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load the newest whole checkpoint, falling back from a damaged one when a training is resumed.

        Raises:
            InputError: no whole checkpoint, one that holds objects, one of another trainer, or (on resuming) of
                another `training` block.
        """
        if not self.was_initialized:
            self.initialize()
        requested = Path(filename_or_checkpoint)
        candidates = [requested]
        if self.resuming and requested.name in FALLBACKS:
            # nnU-Net does not know the previous one and asks for the best where there is no latest
            first = min(FALLBACKS.index(requested.name), FALLBACKS.index(PREVIOUS))
            others = (requested.with_name(name) for name in FALLBACKS[first:])
            candidates = [path for path in others if path == requested or path.is_file()]
        for path in candidates:
            fault: InputError | None = None
            try:
                content = read_checkpoint(path)
            except ForeignObject:  # no damage: someone put it there
                raise
            except InputError as error:
                fault = error
            else:
                self._check_checkpoint(path, content)
                fault = self._misfit(path, content)
            if fault is not None:
                if path == candidates[-1]:
                    if self.resuming:
                        remedy = "train the fold anew without --c, which keeps these files aside"
                        raise InputError(fault.args[0], fault.args[1], remedy) from fault
                    raise fault
                self.print_to_log_file(f"WARNING: {fault} Falling back to an earlier checkpoint.")
                continue
            log = content["logging"]
            del content
            with restricted_unpickling():
                super().load_checkpoint(str(path))
            self.print_to_log_file(f"Loaded {path}, next epoch {self.current_epoch}")
            if self.resuming:
                self.goes_on = True
                self._mend_best(path, moving_dice(log))
            return

    def _mend_best(self, loaded: Path, dice: float) -> None:
        """Make checkpoint_best.pth the best epoch that is there: a kill or a full disk can have kept it from the disk.

        nnU-Net writes the latest checkpoint before it notes a new best; a best that is lost is never written again.

        Args:
            dice: the moving pseudo Dice of the loaded checkpoint.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        best, previous = (loaded.with_name(name) for name in (BEST, PREVIOUS))
        known = {best: _dice_in(best), loaded: dice, previous: _dice_in(previous)}
        better = max(known, key=lambda path: known[path])  # of equal ones the first, as nnU-Net does
        self._best_ema = _finite(known[better])
        if better == best or self._best_ema is None:
            return
        if better == loaded:
            self.current_epoch -= 1  # nnU-Net writes the number of the epoch after
            self.save_checkpoint(str(best))
            self.current_epoch += 1
        else:
            try:
                write_beside(lambda part: shutil.copyfile(previous, part), best)
            except OSError as error:
                self.print_to_log_file(f"WARNING: {error}; training goes on without {best.name}")
        self.print_to_log_file(f"{best.name} was lost; it is now the one of {better.name}")

    def _misfit(self, path: Path, content: dict[str, Any]) -> InputError | None:
        """The error of weights or a state of the optimizer that are not of this network, though the plans are."""
        network = self.bare_network
        faults = differing_weights(content["network_weights"], network.state_dict())
        faults = faults or optimizer_faults(
            content["optimizer_state"], [group["params"] for group in self.optimizer.param_groups]
        )
        if not faults:
            return None
        return InputError(
            f"the damaged checkpoint {path} ({listed(faults, shown=3, separator='; ')})",
            f"one of {type(network).__name__} as the plans and dataset.json describe it",
            "restore them, or train the fold anew without --c",
        )

    def _check_checkpoint(self, path: Path, content: dict[str, Any]) -> None:
        if content["trainer_name"] != type(self).__name__:
            raise InputError(
                f"{path} of the trainer {content['trainer_name']}",
                f"one of {type(self).__name__}",
                f"pass -tr {content['trainer_name']}",
            )
        held_by = content["init_args"]["configuration"]
        if held_by != self.configuration_name:
            raise InputError(
                f"{path} of the configuration {held_by}", f"one of {self.configuration_name}", f"train {held_by}"
            )
        if not self.resuming:
            return
        trained = configuration_of(path, content)
        before = resolve_block(trained.get("training"), self.published_block)
        flags, plans = flags_from(self.block, before), self.plans_manager
        named = f"-d {plans.dataset_name} -p {plans.plans_name} -c {self.configuration_name}"
        restore = f"run nnunetv2_ext schedule {named} {' '.join(flags)}" if flags else "restore it in the plans"
        self._refuse_another("training block", differences(before, self.block), restore)
        now = self.configuration_manager.configuration
        self._refuse_another("network", network_changes(trained, now, self.configuration_name))
        task = task_changes(content["init_args"]["dataset_json"], self.dataset_json)
        self._refuse_another("task", task, "restore dataset.json beside the plans")

    @staticmethod
    def _refuse_another(what: str, changed: list[str], restore: str = "restore it in the plans") -> None:
        if changed:
            raise InputError(
                f"a {what} that differs from the checkpoint's ({'; '.join(changed)})",
                f"the {what} that the training was started with",
                f"{restore}, or start anew without --c",
            )


def _dice_in(path: Path) -> float:
    """See `moving_dice`; of a checkpoint's file, -inf where it is missing or damaged."""
    try:
        return moving_dice(read_checkpoint(path)["logging"])
    except InputError:
        return -math.inf


def _finite(dice: float) -> float | None:
    return dice if math.isfinite(dice) else None


def _move_aside(fold: Path) -> Path:
    """Move a fold into a new model folder beside it; returns where it is.

    Raises:
        OSError: it is where it was.
    """
    aside = _new_folder(fold.parent, f"before-{datetime.now():%Y%m%d-%H%M}")
    try:
        for name in BESIDE:
            if (fold.parent / name).is_file():
                shutil.copyfile(fold.parent / name, aside / name)
        return fold.rename(aside / fold.name)
    except OSError:
        for name in BESIDE:  # no tree is removed here: the fold could be in it
            (aside / name).unlink(missing_ok=True)
        aside.rmdir()
        raise


def _new_folder(parent: Path, name: str) -> Path:
    """A new, empty folder of that name, or with a number behind it."""
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError
