"""`nnunetv2_ext predict`: the labels of a folder of images by one or several trained models."""

import argparse
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.models import chosen
from nnunetv2_ext.text import duration, listed, markdown_table
from nnunetv2_ext.weights.files import FINAL

if TYPE_CHECKING:
    from nnunetv2_ext.inference.folder import Event
    from nnunetv2_ext.inference.region import Region

EXAMPLE = """examples:
  nnunetv2_ext predict -d 42 -tr MNetTrainer -p MNetPlans -c 3d_fullres -i images -o labels
  nnunetv2_ext predict -d 42 -m MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:2d -i images -o labels
  nnunetv2_ext predict -m path/to/MNetTrainer__MNetPlans__3d_fullres -i images/case_0000.nii.gz -o labels
  nnunetv2_ext predict -d 42 -tr MNetTrainer -p MNetPlans -c 3d_fullres -i images -o labels \\
      --roi BackboneTrainer:ROIPlans:3d_roi

The same command again goes on where it was stopped: predict.json in the output folder tells which cases are done, by
which models and of which files. Exit status: 0 all cases are there, 1 some failed, 2 nothing could be done.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of nnUNetv2_predict, several models, a region of interest."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "-i", dest="input", type=Path, required=True, metavar="IN", help="folder of images, or an image"
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="folder to write to")
    model = parser.add_argument_group("one model, as for nnUNetv2_predict")
    model.add_argument("-d", dest="dataset", metavar="ID", help="id or name of the data set")
    model.add_argument("-tr", dest="trainer", metavar="TRAINER", help="trainer (default: nnUNetTrainer)")
    model.add_argument("-p", dest="plans", metavar="PLANS", help="plans identifier (default: nnUNetPlans)")
    model.add_argument("-c", dest="configuration", metavar="CONFIG", help="configuration")
    models = parser.add_argument_group("or several, an ensemble")
    models.add_argument(
        "-m",
        dest="models",
        nargs="+",
        metavar="MODEL",
        help="TRAINER:PLANS:CONFIG of -d, folders of models, or the file of find_best -o",
    )
    models.add_argument("-w", dest="weights", nargs="+", metavar="W", help="weight of each model (default: equal)")
    parser.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds of every model (default: those that are trained)"
    )
    parser.add_argument("-chk", dest="checkpoint", default=FINAL, help="which checkpoint of each fold")
    parser.add_argument("-step_size", default="0.5", metavar="SHARE", help="of the sliding window, of its patch")
    parser.add_argument("--disable_tta", action="store_true", help="no mirrored copies: faster, less accurate")
    parser.add_argument("--skip-empty", action="store_true", help="windows of one value throughout are background")
    parser.add_argument(
        "--linear-z", action="store_true", help="interpolate between slices where nnU-Net takes the nearest one"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="write CASE.npz and CASE.pkl too")
    parser.add_argument(
        "--continue_prediction",
        action="store_true",
        help="keep label files that another command wrote; those of this one are kept in any case",
    )
    parser.add_argument("--overwrite", action="store_true", help="predict every case anew, over what is there")
    parser.add_argument("-npp", dest="readers", default="1", metavar="N", help="threads that read and preprocess")
    parser.add_argument("-nps", dest="writers", default="1", metavar="N", help="threads that export and write")
    parser.add_argument(
        "-prev_stage_predictions",
        dest="previous",
        type=Path,
        metavar="FOLDER",
        help="labels of a cascade's first stage (default: its model, of the same trainer and plans, predicts them)",
    )
    parser.add_argument("-num_parts", dest="parts", default="1", metavar="N", help="processes that fill the folder")
    parser.add_argument("-part_id", dest="part", default="0", metavar="N", help="which of them this one is, from 0")
    parser.add_argument(
        "-device", choices=["cpu", "cuda", "mps"], help="where the network runs (default: a GPU where there is one)"
    )
    parser.add_argument("--not_on_device", action="store_true", help="keep the logits of the image off the GPU")
    parser.add_argument("--disable_progress_bar", action="store_true", help="no progress on stderr")
    parser.add_argument("--verbose", action="store_true", help="a line for each case, and what nnU-Net says")
    parser.add_argument("--json", action="store_true", help="a line of JSON on stdout for every case, and at the end")
    region = parser.add_argument_group("a region of interest, in which alone the models predict")
    region.add_argument(
        "--roi", metavar="WHAT", help="MODEL, a FOLDER of masks, or 'previous': a cascade's first stage"
    )
    region.add_argument("--roi-labels", nargs="+", metavar="LABEL", help="labels that make the region (default: all)")
    region.add_argument(
        "--roi-grid",
        metavar="GRID",
        help="box: each box as if it were the image; image: windows of the whole image that meet a box (default: box)",
    )
    region.add_argument("--roi-margin", metavar="MM", help="around the boxes (default: the calibrated one; masks: 0)")
    region.add_argument("--no-roi-growth", action="store_true", help="boxes that foreground touches stay as they are")
    region.add_argument(
        "--roi-empty",
        metavar="WHAT",
        help="where no region is found: the 'whole' image, or 'background' (default: whole)",
    )


def run(args: argparse.Namespace) -> int:
    """Load, predict, tell."""
    words = sys.stdout
    with redirect_stdout(words if args.verbose and not args.json else io.StringIO()):  # nnU-Net prints
        return _run(args, words)


def _run(args: argparse.Namespace, words: Any) -> int:
    # what can be told before PyTorch is there, which takes seconds
    models, folds = chosen(_models(args), args.dataset, args.folds)
    if not args.input.exists():
        raise InputError(f"no folder or file {args.input}", "a folder of images, or an image", "check the path")
    counts = {
        flag: value_of(getattr(args, name), int, flag)
        for flag, name in (("-npp", "readers"), ("-nps", "writers"), ("-num_parts", "parts"), ("-part_id", "part"))
    }
    for flag in ("-npp", "-nps"):  # nnU-Net's 0 is one process for all
        counts[flag] = max(counts[flag], 1) if counts[flag] >= 0 else counts[flag]
    if min(counts.values()) < 0 or not counts["-part_id"] < counts["-num_parts"]:
        got = listed((f"{flag} {number}" for flag, number in counts.items()), separator=" ")
        raise InputError(got, "1 or more threads and parts, -part_id below -num_parts", "correct it")
    weights = None if args.weights is None else value_of(args.weights, float, "-w")

    import torch

    if args.device == "cpu" or not (args.device or torch.cuda.is_available()):
        torch.set_num_threads(os.cpu_count() or 1)
    from tqdm import tqdm

    from nnunetv2_ext.inference.folder import predict_folder
    from nnunetv2_ext.inference.predictor import Predictor
    from nnunetv2_ext.inference.record import Part
    from nnunetv2_ext.inference.single import Options

    predictor = Predictor(
        models,
        folds=folds,
        weights=weights,
        device=args.device,
        checkpoint=args.checkpoint,
        previous=args.previous is not None,
        options=Options(
            step_size=value_of(args.step_size, float, "-step_size"),
            mirroring=not args.disable_tta,
            on_device=not args.not_on_device,
            skip_empty=args.skip_empty,
            linear_z=args.linear_z,
        ),
        region=_region(args),
    )
    silent = args.disable_progress_bar or args.json or sys.stderr is None
    with tqdm(unit="case", disable=silent, file=sys.stderr, delay=0.1) as bar:  # no bar of what is refused

        def tell(event: "Event") -> None:
            if args.json:
                print(json.dumps({"event": "case", **event._asdict()}), file=words, flush=True)
            if args.verbose and not args.json:
                print(f"{event.case}: {event.status}, {duration(event.seconds)} {event.message}".rstrip(), file=words)
            bar.total = event.of
            bar.update()
            bar.set_postfix_str(f"{event.case} {event.status}, {duration(event.left)} left")

        outcome = predict_folder(
            predictor,
            args.input,
            args.output,
            previous=args.previous,
            probabilities=args.save_probabilities,
            keep=args.continue_prediction,
            overwrite=args.overwrite,
            readers=counts["-npp"],
            writers=counts["-nps"],
            part=Part(counts["-part_id"], counts["-num_parts"]),
            tell=tell,
            watch=lambda case, done, of: bar.set_postfix_str(f"{case}: {done} of {of} windows"),
        )
    if args.json:
        end = {"event": "end", "written": outcome.written, "kept": outcome.kept, "failed": outcome.failed}
        print(json.dumps(end), file=words, flush=True)
    else:
        kept = f", {len(outcome.kept)} were there already" * bool(outcome.kept)
        cases = f"{len(outcome.written)} case{'s' * (len(outcome.written) != 1)}"
        print(f"{cases} predicted{kept}, in {args.output}", file=words)
    for case, why in outcome.notes.items():
        print(f"warning: {case}: {why}", file=sys.stderr)
    if outcome.failed:
        print(f"\n{markdown_table(['failed', 'why'], outcome.failed.items(), aligned=False)}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _models(args: argparse.Namespace) -> list[str]:
    """What -m names, or -tr, -p and -c.

    Raises:
        InputError: neither, or both.
    """
    one = {"-tr": args.trainer, "-p": args.plans, "-c": args.configuration}
    given = [flag for flag, value in one.items() if value is not None]
    if args.models is not None:
        if given:
            raise InputError(f"{listed(given)} beside -m", "one of the two ways to name models", "leave it out")
        return list(args.models)
    if args.dataset is None or args.configuration is None:
        raise InputError("no model", "-d with -c (and -tr, -p), or -m", "name it, such as -d 42 -c 3d_fullres")
    return [f"{args.trainer or 'nnUNetTrainer'}:{args.plans or 'nnUNetPlans'}:{args.configuration}"]


def _region(args: argparse.Namespace) -> "Region | None":
    """The region of interest that is asked for."""
    if args.roi is None:
        names = ("labels", "grid", "margin", "empty")
        asked = [f"--roi-{name}" for name in names if getattr(args, f"roi_{name}") is not None]
        asked += ["--no-roi-growth"] * args.no_roi_growth
        if asked:
            raise InputError(f"{listed(asked)} without --roi", "both", "add --roi, or leave it out")
        return None
    from nnunetv2_ext.inference.predictor import Predictor
    from nnunetv2_ext.inference.region import PREVIOUS, Region, region_of_model
    from nnunetv2_ext.inference.roi import ROI

    margin = None if args.roi_margin is None else value_of(args.roi_margin, float, "--roi-margin")
    roi = ROI(
        labels=None if args.roi_labels is None else value_of(args.roi_labels, int, "--roi-labels"),
        grid=args.roi_grid or "box",
        margin=margin or 0.0,
        growth=not args.no_roi_growth,
        empty=args.roi_empty or "whole",
    )
    if args.roi == PREVIOUS:
        return Region(roi)
    folder = Path(args.roi)
    if folder.is_dir() and not any(folder.glob("fold_*")):
        return Region(roi, folder=folder)
    # as it was validated, which its margin was measured on
    of_region: Predictor = Predictor(args.roi, dataset=args.dataset, device=args.device)
    return region_of_model(roi, of_region, margin)
