"""What is odd about a data set's images and labels, whatever a model says of them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.audit.look import Look, look_at_case
from nnunetv2_ext.audit.places import empty_slices, far_parts, other_grids, outside_the_body, swapped_sides
from nnunetv2_ext.audit.result import Finding
from nnunetv2_ext.audit.stale import KIND as STALE
from nnunetv2_ext.audit.stale import Preprocessed, changed_since
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.data.raw import Raw
from nnunetv2_ext.data.volumes import Grid, read_grid
from nnunetv2_ext.data.voxels import known_voxels, look_at_all, voxel_faults
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.segmentations import Labels, is_volume

RAW = "raw data"
SAME_IMAGE, SAME_LABEL = "same image", "same label"
KINDS: dict[str, str] = {
    RAW: "what nnU-Net stops at or takes otherwise than it is meant, as `doctor` tells it",
    SAME_IMAGE: "images whose voxels are all alike under several names",
    SAME_LABEL: "label maps whose voxels are all alike, of images that are not",
    "outside the body": "a label in the air around the body, where those of the other cases are not",
    "empty slices": "slices without a label between two that show the same part of it",
    "left and right": "labels of a pair on the other side than their names say, or than in the other cases",
    "orientation": "axes that run another way than those of most cases",
    "spacing": "voxels of a far other size than those of the rest",
    "far away": "a part of a label where no other case has any, seen from its largest part",
    STALE: "a preprocessed case, or its copy of the label, that differs from the raw label",
}
"""Kinds of findings, and what each means."""


def find_all(
    raw: Raw | None,
    labels: Labels,
    references: Mapping[str, Path],
    preprocessed: Path | None,
    *,
    processes: int,
    progress: bool,
) -> list[Finding]:
    """Look at every case, and compare it with the others.

    Args:
        raw: the raw data set, of which every training case is looked at; None where it is not on this machine.
        labels: what the values of its label files mean.
        references: by case, the label files that the preprocessed cases were made from.
        preprocessed: folder of a configuration's preprocessed cases, in that of the preprocessed data set; None for no
            look at them.
        processes: cases at the same time.
        progress: show a bar.

    Returns:
        In the order of `KINDS`, within a kind by case.
    """
    findings, unusable = _raw_faults(raw, preprocessed, processes, progress) if raw is not None else ([], set())
    cases = {} if raw is None else raw.cases
    label_files = {**references, **{case: of_it.label for case, of_it in cases.items()}}
    names = sorted(case for case, path in label_files.items() if path not in unusable)
    stored = None if preprocessed is None else Preprocessed(preprocessed)
    channels = _channels(raw)

    def look(case: str) -> tuple[Look | None, list[Finding]]:
        images = cases[case].images if case in cases and not unusable.intersection(cases[case].images) else ()
        found = []
        try:
            seen = look_at_case(label_files[case], labels, images, raw.reader if raw else None, channels)
            found.append(changed_since(case, label_files[case], references.get(case, label_files[case]), labels))
            if stored is not None and not any(found):
                found.append(stored.differing(case, label_files[case], labels))
        except InputError as error:
            got, expected, remedy = error.args
            told = Finding((case,), RAW, f"{got}; expected {expected}; {remedy}")
            return None, [told] if raw is None else []  # the raw data's faults tell it already
        return seen, [one for one in found if one is not None]

    looked = for_each(look, names, processes=processes, label="findings", progress=progress)
    looks = {case: seen for case, (seen, _) in zip(names, looked, strict=True) if seen is not None}
    findings += [finding for _, found in looked for finding in found]
    findings += [*twins(looks), *outside_the_body(looks), *empty_slices(looks), *far_parts(looks)]
    findings += swapped_sides(looks, list(labels.of))
    findings += other_grids(_grids(raw, {case: label_files[case] for case in names}))
    return sorted(findings, key=lambda one: (list(KINDS).index(one.kind), one.cases))


def _raw_faults(raw: Raw, preprocessed: Path | None, processes: int, progress: bool) -> tuple[list[Finding], set[Path]]:
    """What the raw data set's own examination tells, and the files that cannot be read."""
    known = {} if preprocessed is None else known_voxels(raw, preprocessed.parent)
    seen = look_at_all(raw, known, processes=processes, progress=progress) if raw.reader is not None else {}
    faults = [*raw.faults, *(voxel_faults(raw, seen) if seen else [])]
    told = [Finding((), RAW, f"{fault.got}; expected {fault.expected}; {fault.remedy}") for fault in faults]
    return told, raw.unusable | {path for path, one in seen.items() if one.damaged}


def _channels(raw: Raw | None) -> Sequence[str]:
    names = None if raw is None else channel_names(raw.description)
    return [str(name) for name in names.values()] if isinstance(names, dict) else []


def _grids(raw: Raw | None, label_files: Mapping[str, Path]) -> dict[str, Grid]:
    """Of the image of each case, else of its label; of none that tells it only with its voxels."""
    grids = {}
    for case, path in label_files.items():
        if raw is not None and case in raw.cases:
            header = raw.headers.get(raw.cases[case].images[0])
            if header is not None and header.dimensions == 3:
                grids[case] = header.grid
        elif is_volume(path):
            try:
                grids[case] = read_grid(path)
            except InputError:
                continue
    return grids


def twins(looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Images, or labels alone, that several cases share, voxel by voxel; label maps without labels are none."""
    images, labels = defaultdict(list), defaultdict(list)
    for case, look in looks.items():
        if look.image:
            images[look.image].append(case)
        if look.label:
            labels[look.label].append(case)
    for cases in images.values():
        if len(cases) > 1:
            same = len({looks[case].label for case in cases}) == 1
            told = "and the same label" if same else "with different labels"
            folds = "one may train while another validates"
            yield Finding(tuple(cases), SAME_IMAGE, f"they hold the same image {told}: {folds}")
    for cases in labels.values():
        if len(cases) > 1 and len({looks[case].image for case in cases}) == len(cases):
            told = "they hold the same label map, and different images: all but one have another's"
            yield Finding(tuple(cases), SAME_LABEL, told)
