"""The picture of a loss's terms: what it shows is there, and nnU-Net's font sizes are not."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import rcParams

from nnunetv2_ext.evaluation.terms import save_terms


@pytest.mark.parametrize("epochs", [1, 40])
@pytest.mark.parametrize("terms", [("thin",), ("thick", "thin", "features")])
def test_a_row_for_each_term(tmp_path: Path, terms: tuple[str, ...], epochs: int) -> None:
    rows = {}
    for number in (len(terms), 1):
        path = tmp_path / f"{number}.png"
        losses = {term: list(np.linspace(1, 0.1, epochs)) for term in terms[:number]}
        save_terms(losses, dict.fromkeys(terms, 1.0), path)
        rows[number] = plt.imread(path)
    assert rows[1].std() > 0.01
    assert rows[len(terms)].shape[0] == pytest.approx(120 * (1 + 2.2 * len(terms)), abs=1)


def test_the_style_of_others_does_not_matter(tmp_path: Path) -> None:
    losses = {"thin": [3.0, 2.0, 1.0]}
    save_terms(losses, {"thin": 0.5}, tmp_path / "plain.png")
    with plt.rc_context({"font.size": 40, "axes.facecolor": "black"}):
        save_terms(losses, {"thin": 0.5}, tmp_path / "changed.png")
        assert rcParams["font.size"] == 40
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "changed.png").read_bytes()
