"""The folds of a data set: nnU-Net's five, and folds without some cases."""

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_ext.data.splits import default_splits, read_splits, without
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_json

CASES = [f"case_{number}" for number in range(12)]


def test_default_splits_are_those_of_nnunet_and_can_be_written(tmp_path):
    splits = default_splits(reversed(CASES))
    assert splits == generate_crossval_split(sorted(CASES))
    write_json(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json", "") == splits
    with pytest.raises(InputError, match="4 cases"):
        default_splits(CASES[:4])


def test_folds_without_some_cases():
    splits = default_splits(CASES)
    kept = without(splits, {"case_3", "case_11", "another"})
    assert len(kept) == 5
    for fold, before in zip(kept, splits, strict=True):
        for part in ("train", "val"):
            assert fold[part] == [case for case in before[part] if case not in ("case_3", "case_11")]
    assert sum(len(fold["val"]) for fold in kept) == 10


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_fold_that_would_be_empty_is_refused(part):
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    with pytest.raises(InputError, match=r"fold \d without a case to (train|validate) with, once"):
        without(splits, {"train": ["a", "b"], "val": ["c"]}[part])
