"""nnU-Net's sliding window, faster: the same logits but for the order in which float32 sums are taken."""

import contextlib
import ctypes
import io
import math
import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, combinations, islice
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunetv2_ext.architectures.contract import Entered, fixed
from nnunetv2_ext.architectures.layers.instance_norm import ChannelsLastInstanceNorm
from nnunetv2_ext.architectures.layers.memory_format import channels_last

SURE = 10.0
"""The logit of what no window covered: background SURE, everything else -SURE."""
PAIR = 2
"""Copies in one call on the CPU: PyTorch sends a single small one to a convolution twice as slow."""
VOXELS = 128**3
"""No more voxels are at work at once than nnU-Net's usual patch has, unless one patch has more."""
KEPT = 2**28
"""Bytes that stay with the process from case to case."""
BATCH = 8
"""Copies in one call on a GPU, halved where its memory ends."""

Progress = Callable[[int, int], None]
Window = tuple[slice | int, ...]
"""The slices of a window in (channels, *grid); an int where a 2D patch slides over a volume."""
Copy = tuple[Window, tuple[int, ...]]
"""A window and the axes of (channels, *patch) along which it is mirrored."""


class SlidingWindow(nnUNetPredictor):  # type: ignore[misc]
    """One model's logits of preprocessed cases, by all its folds.

    The method that slides the window is written anew after nnU-Net's (nnunetv2 2.8.1), with its rounding: mirrored
    copies are summed as the network gives them; each fold's windows are weighted, summed and divided in half precision,
    in the same order, and so is the mean of the folds. Windows may be left out; a voxel that none covers is background.

    On the CPU several threads each run a few copies with cores of their own, which wait for each other less than cores
    that share one; features lie channels last, through instance norms too; memory stays with the process from layer to
    layer. On a GPU copies go through the network in batches.

    Args:
        network: without deep supervision; it holds the weights of the fold at work. Its layout is changed, no output.
        trainer_name: of the model, for nnU-Net.
        mirroring_axes: spatial axes that the model was trained to mirror, or None.
        weights: a state dict for each fold.
        step_size: between windows, as a share of the patch.
        mirroring: average over mirrored copies of a window.
        on_device: keep image and sums on the GPU, where they fit.
        skip_empty: leave out windows in which each channel has one value throughout.
        batch_size: copies of windows in one call of the network; None: what suits the device.

    Attributes:
        windows: of the last case, the number of windows computed and of all.
    """

    configuration_manager: Any

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
        self.windows = (0, 0)
        self._asked_batch = batch_size
        self.cores = torch.get_num_threads()
        # a compiled network may be compiled again at its first call, which is not for several threads
        self._several = device.type == "cpu" and not isinstance(self.network, OptimizedModule)
        self._share_out()
        self.channels_last = self._several and _take_channels_last(network)
        self._progress: Progress | None = None
        self._chosen: Sequence[Window] | None = None
        self._fold = 0

    def _share_out(self) -> None:
        """Decide on the copies in one call, and on the calls at the same time, by the size of a window."""
        at_once = max(1, VOXELS // math.prod(self.configuration_manager.patch_size))
        usual = {"cuda": BATCH, "cpu": min(PAIR, at_once)}.get(self.device.type, 1)
        self.batch_size = self._asked_batch or usual
        self.streams = max(1, at_once // self.batch_size) if self._several else 1

    @property
    def bare_network(self) -> nn.Module:
        """The network itself, without the wrapper of torch.compile."""
        network: nn.Module = self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Sizes of windows that the network takes, the patch first, then those of its further entries."""
        network = self.bare_network
        smaller = network.entry_shapes[1:] if isinstance(network, Entered) else ()
        return [tuple(int(voxels) for voxels in size) for size in (self.configuration_manager.patch_size, *smaller)]

    @contextlib.contextmanager
    def _of_size(self, size: Sequence[int] | None) -> Iterator[None]:
        """For as long as it lasts, windows are of that size and not the plans' patch."""
        if size is None:
            yield
            return
        planned = self.configuration_manager, self.batch_size, self.streams
        configuration = {**self.configuration_manager.configuration, "patch_size": list(size)}
        self.configuration_manager = ConfigurationManager(configuration)
        self._share_out()
        try:
            yield
        finally:
            self.configuration_manager, self.batch_size, self.streams = planned

    @torch.inference_mode()
    def logits(
        self,
        data: Tensor,
        *,
        windows: Sequence[Window] | None = None,
        size: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The mean of the folds' logits.

        Args:
            data: a preprocessed case (channels, *grid), the previous stage's labels on top as one-hot channels.
            windows: those to compute, of the case padded to a patch; None for nnU-Net's.
            size: of a window in voxels, one of `sizes`; None for the plans' patch.
            progress: called with the number of windows computed and of all, over all folds.

        Returns:
            (heads, *grid) in half precision, on the CPU.
        """
        self._progress, self._chosen = progress, windows
        network = self.bare_network
        mean: Tensor | None = None
        try:
            with self._of_size(size), _memory_kept() if self.device.type == "cpu" else contextlib.nullcontext():
                for fold, weights in enumerate(self.list_of_parameters):
                    self._fold = fold
                    network.load_state_dict(weights)
                    logits = self.predict_sliding_window_return_logits(data).to("cpu")
                    mean = logits if mean is None else mean.add_(logits)
        finally:
            self._chosen = None  # whoever asks for the windows of the next case is told nnU-Net's
        assert mean is not None, "a model has a fold"
        return mean if len(self.list_of_parameters) == 1 else mean.div_(len(self.list_of_parameters))

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> Sequence[Window]:
        return super()._internal_get_sliding_window_slicers(image_size) if self._chosen is None else self._chosen

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Sequence[Window], do_on_device: bool = True
    ) -> Tensor:
        """The logits of one fold (heads, *grid) in half precision, from the given windows."""
        place = self.device if do_on_device else torch.device("cpu")
        data = data.to(place)
        windows = [window for window in slicers if not self.skip_empty or _varies(data[window])]
        self.windows = len(windows), len(slicers)
        heads = self.label_manager.num_segmentation_heads
        total = torch.zeros((heads, *data.shape[1:]), dtype=torch.half, device=place)
        weight = torch.zeros(data.shape[1:], dtype=torch.half, device=place)
        gaussian = compute_gaussian(
            tuple(self.configuration_manager.patch_size), sigma_scale=1.0 / 8, value_scaling_factor=10, device=place
        )
        before, folds = self._fold * len(windows), len(self.list_of_parameters)
        for done, (window, prediction) in enumerate(self._predictions(data, windows), before + 1):
            total[window] += prediction.to(place).mul_(gaussian)
            weight[window[1:]] += gaussian
            if self._progress is not None:
                self._progress(done, folds * len(windows))
        torch.div(total, weight, out=total)
        uncovered = weight == 0
        if uncovered.any():
            total[:, uncovered] = -SURE
            if not self.label_manager.has_regions:
                total[0, uncovered] = SURE
        if torch.isinf(total).any():
            raise RuntimeError("a model's logits overflow half precision, where nnU-Net stops, too")
        return total

    def _predictions(self, data: Tensor, windows: Sequence[Window]) -> Iterator[tuple[Window, Tensor]]:
        """Each window in turn with the network's logits (heads, *patch), the mean of its mirrored copies."""
        axes = [axis + 1 for axis in (self.allowed_mirroring_axes or ()) if self.use_mirroring]
        mirrored = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))  # nnU-Net's order
        copies = [(window, flips) for window in windows for flips in mirrored]
        logits = chain.from_iterable(self._logits_of_batches(data, copies))
        for window in windows:
            prediction, *others = islice(logits, len(mirrored))
            for other in others:
                prediction += other
            yield window, prediction.div_(len(mirrored)) if others else prediction

    def _logits_of_batches(self, data: Tensor, copies: Sequence[Copy]) -> Iterator[Sequence[Tensor]]:
        """The logits of the copies in turn, by batches, which run at the same time with a share of the cores each."""
        cores = self.cores
        streams = min(self.streams, math.ceil(len(copies) / self.batch_size), cores)
        batches = self._batches(copies)
        if streams <= 1:
            yield from (self._logits_of(data, batch) for batch in batches)
            return
        pool = ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(cores // streams,))
        running: deque[Future[Sequence[Tensor]]] = deque()
        try:
            for batch in batches:
                running.append(pool.submit(self._logits_of, data, batch))
                if len(running) > 2 * streams:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)  # threads that are born later take over the number set last

    def _batches(self, copies: Sequence[Copy]) -> Iterator[Sequence[Copy]]:
        """The copies in batches; those to come are smaller where the memory ended."""
        start = 0
        while start < len(copies):
            size = self.batch_size
            yield copies[start : start + size]
            start += size

    @torch.inference_mode()
    def _logits_of(self, data: Tensor, copies: Sequence[Copy]) -> Sequence[Tensor]:
        """The logits (heads, *patch) of each copy, mirrored back."""
        # a copy alone goes through another convolution on the CPU, of half the speed and other last bits
        alone = len(copies) == 1 < self.batch_size and self.device.type == "cpu"
        batch = [*copies, *copies] if alone else copies
        x = torch.stack([data[window].flip(axes) for window, axes in batch]).to(self.device)
        if isinstance(self.network, OptimizedModule) and isinstance(self.bare_network, Entered):
            fixed(x)
        try:
            logits = self.network(channels_last(x) if self.channels_last else x)
        except torch.OutOfMemoryError:
            if len(copies) == 1:
                raise
        else:
            return [one.flip(axes) for one, (_, axes) in zip(logits[: len(copies)], copies, strict=True)]
        half = self.batch_size = len(copies) // 2
        torch.cuda.empty_cache()
        return [*self._logits_of(data, copies[:half]), *self._logits_of(data, copies[half:])]


def _varies(values: Tensor) -> bool:
    """Whether any channel of (channels, *patch) has more than one value."""
    values = values.flatten(1)
    return bool((values != values[:, :1]).any())


def _take_channels_last(network: nn.Module) -> bool:
    """Exchange instance norms for the same function of channels-last features; whether there were any.

    The weights keep their names, and those of convolutions are laid channels last, too.
    """
    found = False
    for module in list(network.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) and norm.affine and not norm.track_running_stats:
                setattr(module, name, ChannelsLastInstanceNorm(norm))
            found |= isinstance(getattr(module, name), ChannelsLastInstanceNorm)
    for parameter in network.parameters() if found else ():
        if parameter.ndim in (4, 5):
            parameter.data = channels_last(parameter.data)
    return found


@contextlib.contextmanager
def _memory_kept() -> Iterator[None]:
    """Large tensors' memory stays with the process from layer to layer; at the end all but KEPT goes back (glibc).

    Else every feature map of more than 32 MiB is new memory, each page of which costs a fault at its first use. The
    process stays with one arena for all threads, and with the thresholds that glibc itself arrives at in the end.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    threshold, trim, arenas, largest = -3, -1, -8, 2**31 - 1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
    library.mallopt(arenas, 1)  # other threads' own arenas hold 64 MiB at most
    library.mallopt(threshold, 2**30)
    library.mallopt(trim, largest)
    try:
        yield
    finally:
        library.mallopt(threshold, 2**25)
        library.mallopt(trim, KEPT)
        library.malloc_trim(KEPT)
