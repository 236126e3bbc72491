"""One training step and one validation step, with a hook for what a method computes.

They do what nnU-Net's own steps do (nnUNetTrainer.train_step and validation_step of nnunetv2 2.8.1; a test compares
losses and weights to the last bit), but leave the forward pass and the loss to `objective`.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.schema import NNUNET_CLIP
from nnunetv2_ext.text import listed
from nnunetv2_ext.weights.checkpoint import not_finite, of_optimizer


@dataclass
class Objective:
    """What a step makes of a batch."""

    loss: Tensor
    """The scalar to minimise."""
    logits: Tensor | None = None
    """What validation scores, (B, C, *spatial); None in training, where nobody asks."""
    target: Tensor | None = None
    """What it is scored against, as nnU-Net lays targets out: (B, 1, *spatial) labels, or (B, regions, *spatial)."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Parts of the loss by name, detached scalars; their means over an epoch are logged, see `term_key`."""


def term_key(term: str) -> str:
    """Where nnU-Net's logger, and so every checkpoint, holds the means of a term, one per epoch."""
    return f"{term}_losses"


class StepTrainer(nnUNetTrainer):
    """nnU-Net's trainer with our steps, which stop where nothing is learned any more."""

    diverged: str | None = None
    """What came with the first loss that is no number: the batch's images, where these were at fault."""

    def objective(self, batch: Mapping[str, Any]) -> Objective:
        """The network's outputs for a batch and their loss; in training and, with `logits` and `target`, in validation.

        Runs under autocast on CUDA. A method overrides it that computes anything but `loss(network(data), target)`.

        Args:
            batch: as the loader hands it out, on the CPU: `data` (B, channels, *patch), `target` a tensor or, with deep
                supervision, a list of them, `keys` the names of the cases.
        """
        data, target = self.on_device(batch["data"]), self.on_device(batch["target"])
        output = self.network(data)
        del data
        loss = self.loss(output, target)
        if self.network.training:
            return Objective(loss)
        return Objective(loss, *((output[0], target[0]) if self.enable_deep_supervision else (output, target)))

    def on_device(self, tensors: Any) -> Any:
        """A tensor, or each of a list of them, on the training's device."""
        if isinstance(tensors, list):
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        return tensors.to(self.device, non_blocking=True)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            objective = self.objective(batch)
        if self.grad_scaler is not None:
            self.grad_scaler.scale(objective.loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), NNUNET_CLIP)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            objective.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), NNUNET_CLIP)
            self.optimizer.step()
        logged = self._logged(objective)
        if self.diverged is None and not np.isfinite(logged["loss"]):
            whole = bool(torch.isfinite(batch["data"]).all())
            self.diverged = "" if whole else listed(sorted(set(batch["keys"])))
        return logged

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self._autocast():
            objective = self.objective(batch)
        if objective.logits is None or objective.target is None:
            raise InputError(
                f"an objective of {type(self).__name__} without logits or target in validation",
                "what the pseudo Dice compares",
                "return them where self.network.training is False",
            )
        counts = self._hard_counts(objective.logits, objective.target)
        return {**self._logged(objective), **dict(zip(("tp_hard", "fp_hard", "fn_hard"), counts, strict=True))}

    def _autocast(self) -> Any:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        self._refuse_divergence(train_outputs)
        for term in dict.fromkeys(key for output in train_outputs for key in output if key != "loss"):
            value = float(np.mean([output[term] for output in train_outputs if term in output]))
            if self.is_ddp:
                values: list[Any] = [None] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(values, value)
                value = float(np.mean(values))
            key = term_key(term)
            self.logger.local_logger.my_fantastic_logging.setdefault(key, [])
            self.logger.log(key, value, self.current_epoch)
            self.print_to_log_file(f"{key[:-2]} {value:.4f}")

    def run_training(self) -> None:
        try:
            super().run_training()
        except BaseException:  # the threads of workers that die would write below the reason
            for batches in (self.dataloader_train, self.dataloader_val):
                if isinstance(batches, NonDetMultiThreadedAugmenter):
                    batches._finish()
            raise

    def lower_rate(self) -> float:
        """A learning rate to propose where a training diverged."""
        return float(self.initial_lr) / 10

    def _refuse_divergence(self, train_outputs: list[dict[str, Any]]) -> None:
        """Stop before weights without a value go into a checkpoint.

        Raises:
            InputError: no loss of the epoch that is finite, or a weight or moment of the optimizer that is not.
        """
        lost = not any(np.isfinite(output["loss"]) for output in train_outputs)
        moments = of_optimizer(self.optimizer.state_dict()["state"])
        without = not_finite(self.network.state_dict()) or not_finite(moments)
        if not lost and not without:
            return
        what = "no finite loss" if lost else f"NaN or infinite weights ({listed(without, shown=1)})"
        if self.diverged:
            raise InputError(
                f"{what} in epoch {self.current_epoch}, first of a batch with NaN or infinite voxels ({self.diverged})",
                "finite images",
                "mend these and preprocess again; the checkpoints of the epochs before stay as they are",
            )
        rate, plans = self.optimizer.param_groups[0]["lr"], self.plans_manager
        named = f"-d {plans.dataset_name} -p {plans.plans_name} -c {self.configuration_name}"
        raise InputError(
            f"{what} in epoch {self.current_epoch} at the learning rate {rate:.3g}",
            "a training that converges",
            f"run nnunetv2_ext schedule {named} --lr {self.lower_rate():.3g}, then train anew without --c; the "
            "checkpoints of the epochs before stay as they are",
        )

    @staticmethod
    def _logged(objective: Objective) -> dict[str, Any]:
        logged = {"loss": objective.loss.detach().cpu().numpy()}
        if objective.terms:  # in one transfer from the GPU
            terms = torch.stack(list(objective.terms.values())).cpu().numpy()
            logged.update(zip(objective.terms, terms, strict=True))
        return logged

    def _hard_counts(self, logits: Tensor, target: Tensor) -> list[np.ndarray]:
        """True positives, false positives and false negatives of the predicted labels: nnU-Net's pseudo Dice.

        Args:
            logits: (B, C, *spatial).
            target: as of `Objective`; ignored voxels do not count.

        Returns:
            Three arrays, one number for each foreground label or region.
        """
        regions, ignore = self.label_manager.has_regions, self.label_manager.ignore_label
        if regions:
            predicted = (torch.sigmoid(logits) > 0.5).long()
        else:
            predicted = torch.zeros(logits.shape, device=logits.device, dtype=torch.float16)
            predicted.scatter_(1, logits.argmax(1, keepdim=True), 1)
        mask = None
        if ignore is not None and regions:
            ignored = target[:, -1:]
            mask = ~ignored if target.dtype == torch.bool else 1 - ignored
            target = target[:, :-1]
        elif ignore is not None:
            ignored = target == ignore
            mask = (~ignored).float()
            target = target.masked_fill(ignored, 0)
        axes = [0, *range(2, logits.ndim)]
        counts = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)[:3]
        first = 0 if regions else 1  # the background's Dice is of no interest
        return [count.detach().cpu().numpy()[first:] for count in counts]
