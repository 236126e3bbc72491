"""What runs in the container: `python3 -m nnunetv2_ext.container.serve`, one process, one sentence where it fails."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.container.failure import sentence, told
from nnunetv2_ext.errors import InputError

if TYPE_CHECKING:
    from nnunetv2_ext.container.settings import Settings

MODEL = Path("/opt/ml/model")
GPU = Path("/dev/nvidia0")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as the container's settings tell; bad input is one sentence on stderr.

    Returns:
        0, 1 where something else than the input was at fault or cases of a folder failed, 2 for bad input.
    """
    parser = argparse.ArgumentParser(prog="serve", description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("/input"), help="the case, or the folder that is watched")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="the labels")
    parser.add_argument("--model", type=Path, default=MODEL, help="container.json and the models")
    parser.add_argument("--check", action="store_true", help="predict nothing, look at the labels that are there")
    parser.add_argument("--once", action="store_true", help="of a folder: what is there now, then end")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="of a folder: between two looks (5)")
    args = parser.parse_args(argv)
    words = sys.stdout
    try:
        with _quiet():
            return _serve(args, words)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # of too little memory, for one
        why = told(error)
        sys.stderr.write(f"nnunetv2_ext: {sentence(why)}\n")
        return 2 if isinstance(why, InputError) else 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what libraries tell: nnU-Net prints, and ITK's write to the stream of errors without asking Python."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _serve(args: argparse.Namespace, words: Any) -> int:
    from nnunetv2_ext.container.settings import CHALLENGE, read_settings
    from nnunetv2_ext.locks import ended_in_order

    settings = read_settings(args.model)

    def tell(line: str) -> None:
        words.write(line + "\n")
        words.flush()

    with ended_in_order():
        if settings.interface == CHALLENGE:
            if args.once or args.every is not None:
                what = "--once" if args.once else "--every"
                raise InputError(what, "the container of a folder", "leave it out")
            return _challenge(args, settings, tell)
        from nnunetv2_ext.container.watch import Watch, find_cases, label_file

        if args.check:
            cases, _ = find_cases(args.input, settings.channels)
            if not cases:
                raise InputError(f"no image in {args.input}", "the images of the labels", "put them there")
            for case, (image, *_) in cases.items():
                tell(_checked(image, label_file(args.output, case, image), settings))
            return 0
        predictor = _predictor(args.model, settings, tell)
        watch = Watch(predictor, settings, args.input, args.output, tell)
        tell(f"watching {args.input}, predicting on the device {predictor.device}")
        watch.run(every=5.0 if args.every is None else max(args.every, 0.1), once=args.once)
        return 1 if watch.failed else 0


def _challenge(args: argparse.Namespace, settings: "Settings", tell: Any) -> int:
    from nnunetv2_ext.container.case import predict_case
    from nnunetv2_ext.container.sockets import case_files, output_file, write_output

    files, target = case_files(args.input, settings), output_file(args.output, settings)
    if args.check:
        tell(_checked(files[0], target, settings))
        return 0
    predictor = _predictor(args.model, settings, tell)
    write_output(predict_case(predictor, files, settings.tif_spacing), target)
    tell(f"{target}: written, predicted on the device {predictor.device}")
    return 0


def _checked(image: Path, target: Path, settings: "Settings") -> str:
    """What is in the labels, in words.

    Raises:
        InputError: none there, or on another grid than the image.
    """
    import numpy as np

    from nnunetv2_ext.container.case import TIFF, ending
    from nnunetv2_ext.data.volumes import read_grid, read_labels, refuse_differences
    from nnunetv2_ext.text import listed

    grid = read_grid(target)
    if ending(image).lower() not in TIFF:
        refuse_differences(read_grid(image), grid, of=str(target), beside=str(image), remedy="build the image again")
    return f"{target}: on the grid of {image.name}, labels {listed(np.unique(read_labels(target)).tolist())}"


def _predictor(folder: Path, settings: "Settings", tell: Any) -> Any:
    """The models, loaded; on a GPU where there is one that works."""
    import SimpleITK as sitk
    import torch

    from nnunetv2_ext.inference.predictor import Predictor
    from nnunetv2_ext.inference.single import Options

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpus())
    if GPU.exists() and not torch.cuda.is_available():
        tell(
            f"PyTorch {torch.__version__} cannot use the GPU here: is the driver older than CUDA {torch.version.cuda}?"
        )
    return Predictor(
        [folder / name for name in settings.models],
        weights=settings.weights,
        options=Options(step_size=settings.step_size, mirroring=settings.mirroring),
    )


def cpus(limits: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: a container may be given a share of those that the machine has.

    Args:
        limits: where Linux tells it: microseconds of every so many, or `max`.
    """
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, of = limits.read_text().split()
        return max(min(number, round(int(share) / int(of))), 1)
    except (OSError, ValueError):  # no limit
        return number


if __name__ == "__main__":
    raise SystemExit(main())
