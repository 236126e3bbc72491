"""What doctor tells of preprocessed data that are not as plans and raw data ask for mends them, done to the letter."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import preprocess_entry

from nnunetv2_ext.cli import main
from tests.planning.conftest import Blocks, faults
from tests.planning.test_record import (
    CHANGES,
    add,
    age_reference,
    correct_with_old_time,
    forget,
    interrupt,
    remove,
    truncate,
)


def plan_by_hand(identifier: str, **changes: Any) -> Callable[[Blocks], None]:
    """Edit the plans after preprocessing, while other plans share the data, or these have them for themselves."""

    def change(blocks: Blocks) -> None:
        file = blocks.preprocessed / "MNetPlans.json"
        plans = json.loads(file.read_text())
        other = file.with_name("PaRPlans.json")
        other.write_text(json.dumps({**plans, "plans_name": "PaRPlans"}))
        if identifier != blocks.data.name:
            blocks.data.rename(blocks.preprocessed / identifier)
            forget(blocks)
        plans["configurations"]["3d_fullres"].update(data_identifier=identifier, **changes)
        file.write_text(json.dumps(plans))

    return change


def lose_references(blocks: Blocks) -> None:
    shutil.rmtree(blocks.preprocessed / "gt_segmentations")


def lose_files(blocks: Blocks) -> None:
    for path in blocks.data.glob("c1*"):
        path.unlink()


def set_the_clock_wrong(blocks: Blocks) -> None:
    forget(blocks)
    os.utime(blocks.image("c0"), (4e9, 4e9))


# what happens, and which remedies doctor then asks for, one after the other, by their first words
REMEDIES: dict[str, tuple[Callable[[Blocks], None], list[str]]] = {
    "corrected, with an old time": (correct_with_old_time, ["run nnunetv2_ext plan_and_preprocess -d 902 -pl MNet"]),
    "a time to come": (set_the_clock_wrong, ["run nnunetv2_ext plan_and_preprocess"]),
    "a case removed": (remove, ["run nnunetv2_ext plan_and_preprocess"]),
    "a case added": (add, ["run nnunetv2_ext plan_and_preprocess"]),
    "regions": (CHANGES["regions"][0], ["run nnunetv2_ext plan_and_preprocess"]),
    "a truncated image": (truncate("c1.b2nd"), ["run nnUNetv2_preprocess -d 902 -plans_name MNetPlans -c 3d_fullres"]),
    "half preprocessed": (interrupt, ["run nnunetv2_ext plan_and_preprocess"]),
    "files lost": (lose_files, ["run nnUNetv2_preprocess"]),
    "another reference": (age_reference, ["remove /"]),
    "no references": (lose_references, ["run nnUNetv2_preprocess"]),
    "another spacing": (plan_by_hand("MNetPlans_3d_fullres", spacing=[8.0, 2.0, 2.0]), ["run nnUNetv2_preprocess"]),
    "another spacing, shared": (
        plan_by_hand("nnUNetPlans_3d_fullres", spacing=[8.0, 2.0, 2.0]),
        ["set data_identifier of 3d_fullres in MNetPlans.json to MNetPlans_3d_fullres"],
    ),
    "another normalisation": (
        plan_by_hand("nnUNetPlans_3d_fullres", normalization_schemes=["NoNormalization"]), ["set data_identifier"]
    ),
}  # fmt: skip


def follow(remedy: str, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a remedy says, to the letter."""
    for step in remedy.split(", then "):
        verb, *words = shlex.split(step.removesuffix("."))
        if verb == "remove":
            shutil.rmtree(words[0])
        elif verb == "set":
            _, _, configuration, _, file, _, value = [word.rstrip(",") for word in words[:7]]
            plans = json.loads((blocks.preprocessed / file).read_text())
            plans["configurations"][configuration]["data_identifier"] = value
            (blocks.preprocessed / file).write_text(json.dumps(plans))
        elif words[0] == "nnunetv2_ext":
            assert main(words[1:]) == 0
        else:
            assert words[0] == "nnUNetv2_preprocess"
            monkeypatch.setattr(sys, "argv", [*words, "-np", "1"])
            preprocess_entry()


@pytest.mark.parametrize(("change", "remedies"), REMEDIES.values(), ids=REMEDIES)
def test_remedies_mend(
    change: Callable[[Blocks], None], remedies: list[str], blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(blocks)
    for begins in remedies:
        remedy = next(iter(faults().values()))
        assert remedy.startswith(begins), remedy
        follow(remedy, blocks, monkeypatch)
    assert not faults()
