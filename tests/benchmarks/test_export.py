"""The export's benchmark on small cases: both sides give the same labels, in a fresh process too."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import _export


@pytest.mark.parametrize("case", _export.CASES, ids=[case.name for case in _export.CASES])
def test_both_sides_give_the_same_labels(case: _export.Case) -> None:
    small = case._replace(logits=(6, 24, 24), image=(10, 40, 40))
    labels = {}
    for side in _export.SIDES:
        measured, labels[side] = _export.run(small, side, 8)
        assert measured["seconds"] > 0
    np.testing.assert_array_equal(labels["ours"], labels["nnU-Net"])
    assert labels["ours"].max() > 1


def test_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: _export.Case, side: str, classes: int, labels: Path) -> dict[str, float]:
        np.save(labels, np.array([0, 1, side == "ours"]))
        return {"seconds": {"ours": 1, "nnU-Net": 4}[side], "bytes": {"ours": 2, "nnU-Net": 8}[side] * 2**20}

    monkeypatch.setattr(_export, "_measure", measured)
    row, _ = _export.export_table(rounds=2)
    assert (row["time ratio"], row["memory ratio"], row["differing"]) == (0.25, 0.25, 1)
    assert row["ours MiB, 100 classes"] == 2
