"""nnU-Net's sliding window, faster: the same logits but for the order in which float32 sums are taken."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

SURE = 10.0
"""The logit of what no window covered: background SURE, everything else -SURE."""
BATCH = 4
"""Windows at once on a GPU, halved where its memory ends."""

Progress = Callable[[int, int], None]
Window = tuple[slice | int, ...]
"""The slices of a window in (channels, *grid); an int where a 2D patch slides over a volume."""


class SlidingWindow(nnUNetPredictor):  # type: ignore[misc]
    """One model's logits of preprocessed cases, by all its folds.

    The method that slides the window is written anew after nnU-Net's (nnunetv2 2.8.1), with its rounding: each fold's
    windows are weighted, summed and divided in half precision, in the same order, and so is the mean of the folds.
    Windows may be left out; a voxel that none covers is background.

    Args:
        network: without deep supervision; it holds the weights of the fold at work.
        trainer_name: of the model, for nnU-Net.
        mirroring_axes: spatial axes that the model was trained to mirror, or None.
        weights: a state dict for each fold.
        step_size: between windows, as a share of the patch.
        mirroring: average over mirrored copies of a window.
        on_device: keep image and sums on the GPU, where they fit.
        skip_empty: leave out windows in which each channel has one value throughout.
        batch_size: windows at once; None: one on the CPU, several on a GPU.

    Attributes:
        windows: of the last case, the number of windows computed and of all.
    """

    def __init__(
        self,
        network: nn.Module,
        plans_manager: Any,
        configuration_manager: Any,
        dataset_json: dict[str, Any],
        trainer_name: str,
        mirroring_axes: Sequence[int] | None,
        weights: Sequence[Mapping[str, Tensor]],
        *,
        device: torch.device,
        step_size: float = 0.5,
        mirroring: bool = True,
        on_device: bool = True,
        skip_empty: bool = False,
        batch_size: int | None = None,
    ):
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints what is not for the CPU
            super().__init__(
                tile_step_size=step_size,
                use_mirroring=mirroring,
                perform_everything_on_device=on_device,
                device=device,
                allow_tqdm=False,
            )
            self.manual_initialization(
                network,
                plans_manager,
                configuration_manager,
                list(weights),
                dataset_json,
                trainer_name,
                tuple(mirroring_axes) if mirroring_axes else None,
            )
        self.skip_empty = skip_empty
        self.batch_size = batch_size or (BATCH if device.type == "cuda" else 1)
        self.windows = (0, 0)
        self._progress: Progress | None = None
        self._done = 0

    @torch.inference_mode()
    def logits(self, data: Tensor, *, progress: Progress | None = None) -> Tensor:
        """The mean of the folds' logits.

        Args:
            data: a preprocessed case (channels, *grid), the previous stage's labels on top as one-hot channels.
            progress: called with the number of windows computed and of all, over all folds.

        Returns:
            (heads, *grid) in half precision, on the CPU.
        """
        self._progress, self._done = progress, 0
        network = self.network._orig_mod if isinstance(self.network, OptimizedModule) else self.network
        mean: Tensor | None = None
        for weights in self.list_of_parameters:
            network.load_state_dict(weights)
            logits = self.predict_sliding_window_return_logits(data).to("cpu")
            mean = logits if mean is None else mean.add_(logits)
        assert mean is not None, "a model has a fold"
        return mean if len(self.list_of_parameters) == 1 else mean.div_(len(self.list_of_parameters))

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[Window], do_on_device: bool = True
    ) -> Tensor:
        """The logits of one fold (heads, *grid) in half precision, from the given windows."""
        place = self.device if do_on_device else torch.device("cpu")
        data = data.to(place)
        windows = [window for window in slicers if not self.skip_empty or _varies(data[window])]
        self.windows = len(windows), len(slicers)
        total = torch.zeros(
            (self.label_manager.num_segmentation_heads, *data.shape[1:]), dtype=torch.half, device=place
        )
        weight = torch.zeros(data.shape[1:], dtype=torch.half, device=place)
        gaussian = compute_gaussian(
            tuple(self.configuration_manager.patch_size), sigma_scale=1.0 / 8, value_scaling_factor=10, device=place
        )
        for window, prediction in zip(windows, self._predictions(data, windows), strict=True):
            total[window] += prediction.to(place).mul_(gaussian)
            weight[window[1:]] += gaussian
            self._report(len(windows))
        torch.div(total, weight, out=total)
        if len(windows) < len(slicers) or not windows or not weight.all():
            self._fill(total, weight == 0)
        if torch.isinf(total).any():
            raise RuntimeError("the logits overflow half precision: nnU-Net stops there, too")
        return total

    def _predictions(self, data: Tensor, windows: Sequence[Window]) -> Iterator[Tensor]:
        """The network's logits (heads, *patch) of each window in turn."""
        start = 0
        while start < len(windows):
            batch = windows[start : start + self.batch_size]
            try:
                predicted = self._internal_maybe_mirror_and_predict(
                    torch.stack([data[window] for window in batch]).to(self.device)
                )
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_size = len(batch) // 2
                continue
            yield from predicted
            start += len(batch)

    def _fill(self, logits: Tensor, where: Tensor) -> None:
        """Background, in place."""
        logits[:, where] = -SURE
        if not self.label_manager.has_regions:
            logits[0, where] = SURE

    def _report(self, windows: int) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, windows * len(self.list_of_parameters))


def _varies(values: Tensor) -> bool:
    """Whether any channel of (channels, *patch) has more than one value."""
    values = values.flatten(1)
    return bool((values != values[:, :1]).any())
