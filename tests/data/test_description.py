"""`dataset.json`: what is proposed is what nnU-Net takes, and several faults are told in one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.data.description import Fault, description_faults, label_values, refuse_faults
from nnunetv2_ext.errors import InputError
from tests.data.raw_dataset import DESCRIPTION

PATH = Path("dataset.json")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        # nested: each region is painted over by those within it
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, [1, 2, 3]),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, [1, 2, 3]),
        ({"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}, [1, 2]),
        ({"background": 0, "one": [1, 2], "other": [3, 4]}, [1, 3]),
    ],
)
def test_the_proposed_order_of_regions(labels: dict[str, Any], order: list[int]) -> None:
    (fault,) = description_faults({**DESCRIPTION, "labels": labels}, PATH)
    found = re.search(r'"regions_class_order": (\[.*?\])', fault.remedy)
    assert found is not None
    proposed = json.loads(found[1])
    assert proposed == order
    assert description_faults({**DESCRIPTION, "labels": labels, "regions_class_order": proposed}, PATH) == []
    with pytest.raises(AssertionError):
        LabelManager(labels, None)
    manager = LabelManager(labels, proposed)
    assert len(manager.foreground_regions) == len(proposed)


def test_label_values_are_those_of_nnunet() -> None:
    labels = {"background": 0, "whole": [2, 1], "lesion": 2, "ignore": 3}
    manager = LabelManager(labels, [1, 2])
    assert label_values({"labels": labels}) == [*manager.all_labels, manager.ignore_label]


def test_several_faults_are_one_sentence() -> None:
    faults = [Fault(f"fault {number}", "none", f"mend {number}", fatal=number != 1) for number in range(1, 7)]
    with pytest.raises(InputError) as told:
        refuse_faults(faults, 42)
    assert str(told.value) == (
        "got fault 2; expected none; mend 2 (1 of 5 faults; the others: fault 3; fault 4; fault 5 and 1 more; "
        "nnunetv2_ext doctor -d 42 tells the remedies)."
    )
    refuse_faults(faults[:1], 42)
