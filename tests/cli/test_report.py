import pytest

from nnunetv2_ext.cli import main
from tests.report.evaluations import boxes, write_evaluation


def test_page_and_what_it_lacks_are_told(tmp_path, capsys):
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(1)]}, folders={"ours": tmp_path / "gone__plans__3d"})
    page = tmp_path / "page.html"
    assert main(["report", str(evaluation), "-o", str(page), "--cases", "0", "--viewer", "0", "--title", "Mine"]) == 0
    out = capsys.readouterr().out
    assert f"Its folder {tmp_path / 'gone__plans__3d'} is not there, which tells how it was trained." in out
    assert f"{page}: " in out.splitlines()[-1]
    assert "<h1>Mine</h1>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluation", "--cases", "-1"], "got --cases -1; expected 0 or more"),
        (["evaluation", "--viewer", "many"], "got --viewer many; expected a whole number"),
        (["nothing"], "expected the scores of an evaluation"),
        (["evaluation", "-i", "nothing"], "expected a folder of images"),
        (["evaluation", "-o", "page.pdf"], "expected a file .html"),
    ],
)
def test_refused_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path, {"ours": [boxes(1)]})
    assert main(["report", "-o", "page.html", *arguments]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("page*"))
