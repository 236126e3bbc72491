"""Preprocessed data: which plans may share them, and whether they are whole and as plans and raw data ask for."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_pickle
from nnunetv2_ext.planning.record import Sources, changed_sources, newer_sources, other_cases, read_record
from nnunetv2_ext.text import counted, one_line

STOCK_PLANS = "nnUNetPlans"
# where two configurations agree on these, they read the same preprocessed data
_PREPROCESSING_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)
# and their plans on these
_PLANS_KEYS = ("image_reader_writer", "transpose_forward")
# nnU-Net's normalisations that look at one image alone; others read the statistics of all
_OF_ONE_IMAGE = ("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")

# what nnU-Net needs to lay a prediction back into the image
_PROPERTIES = (
    "spacing",
    "shape_before_cropping",
    "bbox_used_for_cropping",
    "shape_after_cropping_and_before_resampling",
)


def agree(configuration: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations ask for the same preprocessed data."""
    return all(_equal(configuration[key], other[key]) for key in _PREPROCESSING_KEYS)


def settings(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """All that plans say of how a configuration's data are preprocessed.

    Args:
        configuration: with what it inherits.
    """
    statistics = plans.get("foreground_intensity_properties_per_channel")
    schemes = configuration.get("normalization_schemes") or ()
    read = [str(channel) for channel, scheme in enumerate(schemes) if scheme not in _OF_ONE_IMAGE]
    return {
        **{key: configuration.get(key) for key in _PREPROCESSING_KEYS},
        **{key: plans.get(key) for key in _PLANS_KEYS},
        "intensities": None if statistics is None else {channel: statistics.get(channel) for channel in read},
    }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The settings that differ; those that one of the two does not know count as equal."""
    known = [key for key in one if one[key] is not None and other.get(key) is not None]
    return [key for key in known if not _equal(one[key], other[key])]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple | np.ndarray) and isinstance(other, list | tuple | np.ndarray):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(np.isclose(one, other)) if isinstance(one, float) and isinstance(other, float) else bool(one == other)


class Fault(NamedTuple):
    """Why preprocessed data may not be used as they are."""

    kind: str
    """"files", "plans", "labels" or "raw": what the data disagree with."""
    told: str
    certain: bool = True


def cases_in(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each case in one of nnU-Net's two layouts: image, segmentation and properties, or both in one file.

    Raises:
        InputError: no folder, no cases, files of other kinds among them, a case without one of its files.
    """
    again = "preprocess again"
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "preprocessed data there", again)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    endings = {name.rpartition(".")[2] for name in names} - {"pkl", "npy"}
    # nnU-Net decides by the one ending that is there, and stops when there are several
    if not endings:
        raise InputError(f"no cases in {folder}", "preprocessed data there", again)
    if len(endings) > 1 or not endings <= {"b2nd", "npz"}:
        odd = sorted(endings - {"b2nd", "npz"}) or sorted(endings)
        what = f"files of several kinds in {folder} ({', '.join(odd)})"
        raise InputError(what, "one layout of nnU-Net's, .b2nd or .npz", "remove those that are no data")
    parts = (".b2nd", "_seg.b2nd", ".pkl") if endings == {"b2nd"} else (".npz", ".pkl")
    cases = {name.removesuffix(parts[0]) for name in names if name.endswith(parts[0]) and name[-9:] != "_seg.b2nd"}
    broken = sorted(case for case in cases if any(case + part not in names for part in parts))
    if broken:
        what = f"incomplete files of {counted(broken, 'case')} in {folder}"
        raise InputError(what, ", ".join(f"CASE{part}" for part in parts), again)
    return {case: tuple(folder / (case + part) for part in parts) for case in sorted(cases)}


class Stored(NamedTuple):
    """A preprocessed case, without its voxels."""

    shape: tuple[int, ...]
    """Of the image: channels, then space."""
    properties: dict[str, Any]
    """nnU-Net's."""


def open_case(files: tuple[Path, ...]) -> Stored:
    """Look at the headers, the lengths and the properties of a case.

    Raises:
        InputError: a damaged file, or image and segmentation of different size.
    """
    *arrays, pickled = files
    properties = read_pickle(pickled, "preprocess again")
    shapes = []
    for path in arrays:
        try:
            shapes += _shapes_in(path)
        except Exception as error:  # damaged bytes raise anything
            what = f"a damaged file {path} ({one_line(error)})"
            raise InputError(what, "preprocessed data", "preprocess again") from None
    image, segmentation = shapes
    if len(image) != 4 or segmentation != (1, *image[1:]):
        what = f"an image of {image} voxels with a segmentation of {segmentation} in {arrays[0]}"
        raise InputError(what, "channels, z, y, x and 1, z, y, x of one size", "preprocess again")
    lacking = [key for key in _PROPERTIES if not isinstance(properties, dict) or key not in properties]
    if lacking:
        what = f"no {', '.join(lacking)} in {pickled}"
        raise InputError(what, "nnU-Net's properties of a case", "preprocess again")
    return Stored(image, properties)


def _shapes_in(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the arrays in a file, which is as long as its header says."""
    if path.suffix == ".b2nd":
        try:
            return [tuple(blosc2.open(urlpath=str(path), mode="r").shape)]
        except RuntimeError:  # which tells no more than that
            raise EOFError("cut off, or no Blosc2 array") from None
    shapes = []
    with zipfile.ZipFile(path) as packed:
        for name in ("data", "seg"):
            unpacked = path.with_name(f"{path.stem}.npy" if name == "data" else f"{path.stem}_seg.npy")
            if unpacked.is_file():  # nnU-Net then reads that
                shapes.append(np.load(unpacked, mmap_mode="r").shape)
                continue
            with packed.open(f"{name}.npy") as stream:
                major, _ = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shapes.append(read(stream)[0])
    return shapes


def faults_of_data(
    preprocessed: Path,
    manager: PlansManager,
    name: str,
    dataset_json: Mapping[str, Any],
    sources: Sources,
    *,
    made_before: Iterable[Path] = (),
) -> Iterator[Fault]:
    """What keeps a configuration's preprocessed data from being those that its plans and the raw data ask for.

    Args:
        preprocessed: folder of the preprocessed data set.
        name: of the configuration.
        dataset_json: that of the preprocessed data set.
        sources: the raw files; none, and nothing is compared with them.
        made_before: files that must be older than data of which no record tells how they were made.
    """
    configuration = manager.get_configuration(name)
    made = read_record(preprocessed).get(configuration.data_identifier)
    try:
        cases = cases_in(preprocessed / configuration.data_identifier)
        if sources and (told := other_cases(sources, cases)):
            lost = made is not None and made.sources.keys() == sources.keys()
            yield Fault("files" if lost else "raw", told)
        stored = _open_all(cases)
    except InputError as error:
        yield Fault("files", error.args[0])
        return
    if made is not None and not made.speaks_of(preprocessed):
        made = None
    planned = settings(manager.plans, configuration.configuration)
    if made is not None and (keys := differing(made.settings, planned)):
        yield Fault("plans", f"made with {_values(made.settings, keys)}, where the plans say {_values(planned, keys)}")
    elif told := _unlike_plans(manager, configuration, stored):
        yield Fault("plans", told)
    if told := _unlike_labels(manager, dataset_json, stored):
        yield Fault("labels", told)
    if made is not None:
        if sources and (told := changed_sources(sources, made)):
            yield Fault("raw", told)
        return
    written = {case: files[-1].stat().st_mtime_ns for case, files in cases.items()}
    if age := newer_sources(sources, written):
        yield Fault("raw", age.told, age.certain)
    oldest = min(written.values())
    if later := [path.name for path in made_before if path.is_file() and path.stat().st_mtime_ns > oldest]:
        yield Fault("plans", f"nothing tells how they were made, and {later[0]} is newer")


def _open_all(cases: Mapping[str, tuple[Path, ...]]) -> dict[str, Stored]:
    """Every case by name.

    Raises:
        InputError: some are damaged; names them and tells of the first.
    """
    stored: dict[str, Stored] = {}
    damaged: dict[str, InputError] = {}
    for case, files in cases.items():
        try:
            stored[case] = open_case(files)
        except InputError as error:
            damaged[case] = error
    if damaged:
        first, expected, remedy = next(iter(damaged.values())).args
        raise InputError(f"{counted(damaged, 'damaged case')}: {first}", expected, remedy)
    return stored


def _values(of: Mapping[str, Any], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {of[key]}" if len(str(of[key])) < 80 else f"other {key}" for key in keys)


def _unlike_plans(manager: PlansManager, configuration: ConfigurationManager, stored: Mapping[str, Stored]) -> str:
    """In words, which cases have another size than nnU-Net's preprocessor gives them; empty where none has."""
    if configuration.preprocessor_name != "DefaultPreprocessor":
        return ""
    transposed = manager.transpose_forward
    channels = len(configuration.normalization_schemes)
    unlike = {}
    for case, (shape, properties) in stored.items():
        before = [float(properties["spacing"][axis]) for axis in transposed]
        target = list(configuration.spacing)
        target = [*before[: len(before) - len(target)], *target]  # 2d: slices stay where they are
        size = properties["shape_after_cropping_and_before_resampling"]
        expected = (channels, *(int(length) for length in compute_new_shape(size, before, target)))
        if shape != expected:
            unlike[case] = f"{shape} instead of {expected} voxels (channels, z, y, x)"
    if not unlike:
        return ""
    spacing = ", ".join(f"{millimetres:.4g}" for millimetres in configuration.spacing)
    first = next(iter(unlike.values()))
    return f"{counted(unlike, 'case')} of another size than the plans' spacing of {spacing} mm gives: {first}"


def _unlike_labels(manager: PlansManager, dataset_json: Mapping[str, Any], stored: Mapping[str, Stored]) -> str:
    """In words, which cases were preprocessed for other labels or regions; empty where none was."""
    labels = manager.get_label_manager(dict(dataset_json))
    collected = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    # what nnU-Net's preprocessor samples locations of, and a training looks up
    keys = {tuple(map(int, key)) if isinstance(key, list | tuple) else int(key) for key in collected}
    if labels.has_ignore_label:
        keys.add((-1, *map(int, labels.all_labels)))
    held = {case: set(one.properties.get("class_locations", keys)) for case, one in stored.items()}
    unlike = [case for case in held if held[case] != keys]
    if not unlike:
        return ""
    were, are = (", ".join(sorted(map(str, of))) for of in (held[unlike[0]], keys))
    return f"{counted(unlike, 'case')} preprocessed for the labels or regions {were}, where dataset.json has {are}"
