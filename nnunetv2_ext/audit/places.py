"""What is odd about where labels lie: in air, with gaps, on the other side, far away; and about grids of another kind.

What "the rest" does is taken from the data set itself: a trait that many cases share is anatomy or a habit, no finding.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.audit.look import Look, Part, Structure
from nnunetv2_ext.audit.result import ACROSS, SIDES, Finding
from nnunetv2_ext.data.volumes import Grid
from nnunetv2_ext.text import listed

RARE = 0.05
"""Share of the cases: what more of them do is no exception."""
FEWEST = 5
"""Cases that a comparison with the rest needs."""
OUTSIDE = 0.05
"""Share of a label in the air around the body, beyond what the upper quarter of the other cases has."""
FAR = 0.25
"""Of the size of the label in the other cases."""
ALIKE = 0.5
"""Of the voxels of the largest part: another one with more is as good a place to look at the others from."""
BESIDE = 0.5
"""Of the usual distance between left and right: nearer, the sides of a pair are not told."""
OTHER_SPACING = 1.5
"""Times the median, or as many times smaller."""
FILE = ("first axis", "second axis", "third axis")
PAIRS = {"left": "right", "l": "r", "lt": "rt", "lft": "rgt", "links": "rechts"}

Looks = Mapping[str, Look]


def cases_by_label(looks: Looks) -> dict[str, dict[str, Structure]]:
    """For each label, the cases that have it."""
    found: dict[str, dict[str, Structure]] = defaultdict(dict)
    for case, look in looks.items():
        for label, structure in look.structures.items():
            found[label][case] = structure
    return found


def is_rare(number: int, cases: int) -> bool:
    """Whether so many of the cases are an exception; one is where there are enough to compare with."""
    return cases > FEWEST and 0 < number <= max(1, RARE * cases)


def outside_the_body(looks: Looks) -> Iterator[Finding]:
    """Labels in the air around the body, where those of the other cases are not."""
    told = defaultdict(list)
    for label, structures in cases_by_label(looks).items():
        shares = {case: structure.outside for case, structure in structures.items()}
        for case, share in shares.items():
            others = [other for name, other in shares.items() if name != case]
            usual = float(np.quantile(others, 0.75)) if others else 0.0
            if share >= usual + OUTSIDE:
                than = f" (of the other cases, {usual:.0%} or less in three of four)" if usual else ""
                told[case].append(f"{share:.0%} of {label} lies in the air outside of the body{than}")
    yield from _of_each(told, "outside the body")


def empty_slices(looks: Looks) -> Iterator[Finding]:
    """Slices without a label between two that show the same part of it."""
    told = defaultdict(list)
    for label, structures in cases_by_label(looks).items():
        having = [case for case, structure in structures.items() if max(structure.gaps)]
        if len(having) > max(1.0, len(structures) / 2):  # annotated so throughout
            continue
        for case in having:
            of_it = structures[case]
            axis = int(np.argmax(of_it.gaps))
            along = ACROSS[axis] if looks[case].placed else f"along the {FILE[axis]}"
            between = ", between slices that have it" * (case not in told)
            told[case].append(
                f"{of_it.gaps[axis]} of the {of_it.slices[axis]} slices of {label} {along} are empty{between}"
            )
    yield from _of_each(told, "empty slices")


def _of_each(told: Mapping[str, Sequence[str]], kind: str) -> Iterator[Finding]:
    """One finding of each case, of all its labels."""
    for case, of_labels in told.items():
        yield Finding((case,), kind, "; ".join(of_labels))


def pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Labels whose names differ by left and right alone, such as `kidney_left`; the left one first."""
    by_name = {re.sub("(?<=[a-z])(?=[A-Z])|[^a-zA-Z0-9]+", "_", label).lower(): label for label in labels}
    found = []
    for name, label in by_name.items():
        for word in re.finditer("[^_]+", name):
            if word[0] in PAIRS:
                other = by_name.get(name[: word.start()] + PAIRS[word[0]] + name[word.end() :])
                if other is not None:
                    found.append((label, other))
    return found


def swapped_sides(looks: Looks, labels: Sequence[str]) -> Iterator[Finding]:
    """Pairs of labels whose sides differ from their names, or from most of the cases."""
    for left, right in pairs(labels):
        apart = {
            case: look.structures[left].centre[0] - look.structures[right].centre[0]
            for case, look in looks.items()
            if look.placed and left in look.structures and right in look.structures
        }
        if not apart:
            continue
        clear = BESIDE * float(np.median(np.abs([*apart.values()])))
        on_left = [case for case, way in apart.items() if way > 0 and way >= clear]
        on_right = [case for case, way in apart.items() if way < 0 and -way >= clear]
        most_on_left = len(on_left) >= len(on_right)
        for case in on_right if most_on_left else on_left:
            side = "right" if most_on_left else "left"
            rest = len(on_left) if most_on_left else len(on_right)
            told = f"{left} lies {abs(apart[case]):.0f} mm to the patient's {side} of {right}, unlike in {rest} others"
            why = "the two labels are swapped, or the image is mirrored"
            yield Finding((case,), "left and right", f"{told}: {why}")
        if not most_on_left:
            told = f"{left} lies to the patient's right of {right} in {len(on_right)} of {len(apart)} cases"
            why = "the names of the two labels are swapped, or the headers tell the wrong orientation"
            yield Finding(tuple(on_right), "left and right", f"{told}: {why}")


def far_parts(looks: Looks) -> Iterator[Finding]:
    """Parts of a label where the other cases have nothing of it, seen from its largest parts."""
    for label, structures in cases_by_label(looks).items():
        within = {case: one for case, one in structures.items() if one.parts}
        if len(within) <= FEWEST:
            continue
        boxes = {case: _boxes(one) for case, one in within.items()}
        size = float(np.median([np.linalg.norm(np.ptp(of_it[0], axis=(0, 1))) for of_it in boxes.values()]))
        far: dict[str, tuple[float, Part]] = {}
        for case, one in within.items():
            others = np.concatenate([of_it.reshape(-1, 2, 3) for name, of_it in boxes.items() if name != case])
            for part in one.parts[1:]:
                place = np.subtract(part.centre, one.parts[0].centre)
                beyond = np.maximum(np.maximum(others[:, 0] - place, place - others[:, 1]), 0)
                distance = float(np.linalg.norm(beyond, axis=1).min())
                if distance > FAR * size and distance > far.get(case, (0.0, part))[0]:
                    far[case] = (distance, part)
        if is_rare(len(far), len(within)):
            for case, (distance, part) in far.items():
                size_told = f"{part.voxels} voxel{'s' * (part.voxels != 1)}"
                told = f"a part of {label} ({size_told}) lies {distance:.0f} mm from where any other case"
                way = _way(np.subtract(part.centre, within[case].parts[0].centre)) if looks[case].placed else ""
                yield Finding((case,), "far away", f"{told} has it{way}")


def _boxes(structure: Structure) -> np.ndarray:
    """The boxes of all parts (references, parts, 2 corners, 3) in mm from the centres of the largest one and its like.

    Of two kidneys either may be the larger one.
    """
    corners = np.array([[part.low, part.high] for part in structure.parts])
    references = np.array([part.centre for part in structure.parts if part.voxels >= ALIKE * structure.parts[0].voxels])
    return corners - references[:, None, None]


def _way(millimetres: np.ndarray) -> str:
    """The longest way from the largest part, in words."""
    axis = int(np.argmax(np.abs(millimetres)))
    side = SIDES[axis][int(millimetres[axis] < 0)]
    return f", {abs(millimetres[axis]):.0f} mm towards the patient's {side} from its largest part"


def other_grids(grids: Mapping[str, Grid]) -> Iterator[Finding]:
    """Orientations and spacings unlike those of the rest."""
    yield from _orientations({case: grid for case, grid in grids.items() if not grid.doubt})
    yield from _spacings(grids)


def _orientations(grids: Mapping[str, Grid]) -> Iterator[Finding]:
    letters = {
        case: sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(grid.direction)
        for case, grid in grids.items()
    }
    common = Counter(letters.values()).most_common()
    for other, _ in common[1:]:
        cases = tuple(case for case, of_it in letters.items() if of_it == other)
        told = f"the axes run towards {other}, those of {common[0][1]} other cases towards {common[0][0]}"
        yield Finding(cases, "orientation", f"{told}: nnU-Net sees the image turned or mirrored")


def _spacings(grids: Mapping[str, Grid]) -> Iterator[Finding]:
    """Cases beyond Tukey's outer fences, and by half of the median at least, if they are few."""
    if len(grids) <= FEWEST:
        return
    logs = np.log([np.array(grid.spacing) for grid in grids.values()])
    low, median, high = np.quantile(logs, [0.25, 0.5, 0.75], axis=0)
    beyond = np.maximum(low - logs, logs - high) > 3 * (high - low)
    odd = (beyond & (np.abs(logs - median) >= math.log(OTHER_SPACING))).any(axis=1)
    if is_rare(int(odd.sum()), len(grids)):
        for (case, grid), is_odd in zip(grids.items(), odd, strict=True):
            if is_odd:
                own, usual = (
                    listed([float(f"{one:.3g}") for one in of], separator=" x ")
                    for of in (grid.spacing, np.exp(median))
                )
                yield Finding((case,), "spacing", f"its voxels are {own} mm (x, y, z), the median is {usual} mm")
