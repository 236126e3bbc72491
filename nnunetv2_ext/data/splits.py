"""The folds of a data set: splits_final.json, or nnU-Net's five where there is none."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json
from nnunetv2_ext.text import counted

SPLITS, NNUNET_FOLDS = "splits_final.json", 5


def read_splits(file: Path, remedy: str) -> list[dict[str, list[str]]]:
    """All folds of a file.

    Raises:
        InputError: a damaged file, or one of another content.
    """
    splits: list[dict[str, list[str]]] = read_json(file, remedy, kind=list)
    if not splits or not all(map(_is_split, splits)):
        raise InputError(f"{file}, which is no list of folds with train and val", "names of cases in each", remedy)
    return splits


def default_splits(cases: Iterable[str]) -> list[dict[str, list[str]]]:
    """The five folds that nnU-Net makes of a data set without splits_final.json.

    Raises:
        InputError: fewer than five cases.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    names = sorted(cases)
    if len(names) < NNUNET_FOLDS:
        raise InputError(counted(names, "case"), f"{NNUNET_FOLDS} or more for nnU-Net's folds", "add cases")
    return [
        {part: [str(case) for case in fold[part]] for part in ("train", "val")}
        for fold in generate_crossval_split(names, seed=12345, n_splits=NNUNET_FOLDS)
    ]


def without(splits: list[dict[str, list[str]]], cases: Collection[str]) -> list[dict[str, list[str]]]:
    """All folds, without some cases.

    Raises:
        InputError: a fold has no other ones left to train or to validate with.
    """
    kept = [{part: [case for case in fold[part] if case not in cases] for part in ("train", "val")} for fold in splits]
    for number, (fold, before) in enumerate(zip(kept, splits, strict=True)):
        for part, verb in (("train", "train"), ("val", "validate")):
            if before[part] and not fold[part]:
                got = f"fold {number} without a case to {verb} with, once {counted(cases, 'case')} are left out"
                raise InputError(got, "at least one", f"write folds of the other cases by hand, as {SPLITS} has them")
    return kept


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(
        isinstance(split.get(part), list) and all(isinstance(case, str) for case in split[part])
        for part in ("train", "val")
    )


def check_number(fold: int, folds: int) -> None:
    """Refuse a fold that is not there, for which nnU-Net would take a random split.

    Raises:
        InputError: no fold of that number.
    """
    if not 0 <= fold < folds:
        raise InputError(
            f"fold {fold} of {folds}, for which nnU-Net would take a random split that overlaps with the other folds",
            f"one of 0 to {folds - 1}, or all",
            "choose one of these",
        )


def check_split(
    splits: list[dict[str, list[str]]], fold: int, cases: Collection[str], *, unknown: str, restore: str
) -> set[str]:
    """Refuse a fold that cannot be trained.

    Args:
        splits: all folds.
        cases: names of the preprocessed cases.
        unknown: what to do about cases that are not among them.
        restore: what to do about a wrong file.

    Returns:
        The cases that are both trained and validated with, which nnU-Net only warns of.

    Raises:
        InputError: no such fold, unknown cases, or none to train or to validate with.
    """
    check_number(fold, len(splits))
    train, validation = set(splits[fold]["train"]), set(splits[fold]["val"])
    lacking = sorted((train | validation) - set(cases))
    if lacking:
        raise InputError(
            f"a fold {fold} that names {counted(lacking, 'case')}, not preprocessed",
            "preprocessed cases",
            unknown,
        )
    if not train or not validation:
        raise InputError(
            f"fold {fold} without cases to {'validate' if train else 'train'} with", "at least one", restore
        )
    return train & validation
