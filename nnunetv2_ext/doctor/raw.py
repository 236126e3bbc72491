"""What the doctor checks of a raw data set: all that nnU-Net's commands stop at, or take otherwise than it is meant."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_ext.audit import FEWEST
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN, Check, Subject
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, raw_folder
from nnunetv2_ext.text import counted

QUICK_VOXELS = 5e8
"""Label files of so many voxels in all are read without --deep, which takes seconds."""


def check_raw(subject: Subject) -> Iterator[Check]:
    """Description, files and headers; the voxels as far as planning has recorded them, of all files with --deep."""
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_ext.data.cases import IMAGES, files_of
    from nnunetv2_ext.data.raw import examine
    from nnunetv2_ext.data.voxels import known_voxels, look_at_all, voxel_faults

    try:
        name = dataset_name(subject.dataset or "")
    except InputError:  # the next examination tells it
        return
    folder, preprocessed = raw_folder(name), Path(os.environ.get("nnUNet_preprocessed") or os.devnull) / name
    if folder is None or (not (folder / "dataset.json").is_file() and preprocessed.is_dir()):
        yield Check(OK, "none on this machine, which a training does not need")
        return
    raw = examine(folder, processes=default_num_processes)
    if "dataset" not in raw.description and not (folder / IMAGES).is_dir() and preprocessed.is_dir():
        yield Check(OK, f"no images in {folder}, which a training does not need")
        return
    faults, unread = list(raw.faults), []
    if raw.cases:
        known = known_voxels(raw, preprocessed)
        labels = [path for path, label in files_of(raw.cases) if label and path not in known and path in raw.headers]
        voxels = sum(math.prod(raw.headers[path].grid.size) for path in labels)
        seen = known
        if subject.deep or voxels <= QUICK_VOXELS:
            seen = look_at_all(
                raw, known, processes=default_num_processes, progress=subject.deep, labels_only=not subject.deep
            )
        unread = [path.name for path, _ in files_of(raw.cases) if path not in seen and path not in raw.unusable]
        faults += voxel_faults(raw, seen)
    for fault in faults:
        yield Check(
            FAIL if fault.fatal or fault.doubtful else WARN, f"{fault.got}; expected {fault.expected}", fault.remedy
        )
    if unread:
        what = f"the voxels of {counted(unread, 'file')} have not been read since the files last changed"
        yield Check(WARN, what, "run this with --deep, which reads them")
    if not any(fault.fatal or fault.doubtful for fault in faults):
        wrong = f"; nnunetv2_ext audit -d {subject.dataset} tells which of their labels are probably wrong"
        yield Check(OK, f"{len(raw.cases)} cases in {folder}{wrong * (not faults and len(raw.cases) >= FEWEST)}")
