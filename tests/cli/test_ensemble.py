"""`ensemble` on folders that do not fit, or are damaged: a sentence each, no file that looks like a result."""

import io
import json
import os
import pickle
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.locks import held
from tests.inference.predictions import Predictions, label_files, names

REGIONS: dict[str, Any] = {"labels": {"background": 0, "whole": [1, 2], "core": [2], "rim": [1]}}
REGIONS["regions_class_order"] = [1, 2, 1]
TURNED = {"whole": [1, 2], "rim": [1], "core": [2], "background": 0}


class Pair:
    """Two folders of predictions, `A` and `B`, and an output folder that is not there yet."""

    def __init__(self, root: Path):
        self.root, self.out = root, root / "out"
        self.a, self.b = (Predictions(root / name, seed) for seed, name in enumerate("AB"))

    def describe(self, **entries: Any) -> None:
        self.b.describe(**entries)

    def both(self, **entries: Any) -> None:
        self.a.describe(**entries)
        self.b.describe(**entries)

    def regions(self, **entries: Any) -> None:
        """Both of regions, B with other entries."""
        self.both(**REGIONS)
        self.describe(**{**REGIONS, **entries})

    def reader(self, of: str, name: str) -> None:
        for one in (self.a, self.b):
            if one.folder.name in of:
                one.plans["image_reader_writer"] = name
                one.describe()

    def empty(self, pattern: str) -> None:
        for path in self.b.folder.glob(pattern):
            path.unlink()

    def instead(self, name: str, *, folder: bool = False) -> None:
        """A file of B becomes a folder, or the folder B a file."""
        path = self.b.path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.mkdir() if folder else path.touch()


Change = Callable[[Pair], object]
IN = ["-i", "A", "B", "-o", "out"]


def run(pair: Pair, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> tuple[int, str, str]:
    monkeypatch.chdir(pair.root)
    status = main(["ensemble", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


REFUSED: list[tuple[str, Change, list[str], str]] = [
    (
        "label_orders",
        lambda p: p.describe(labels={"background": 0, "right": 1, "left": 2}),
        IN,
        "'left' = 1 in A, but 2 in B",
    ),
    (
        "label_names",
        lambda p: p.describe(labels={"background": 0, "left": 1, "cyst": 2}),
        IN,
        "'right' = 2 in A, but none",
    ),
    (
        "order_of_regions",
        lambda p: p.regions(labels=TURNED),
        IN,
        "the order of regions = whole, core, rim in A, but whole, rim, core in B",
    ),
    (
        "regions_class_order",
        lambda p: p.regions(regions_class_order=[2, 1, 1]),
        IN,
        "regions_class_order = [1, 2, 1] in A, but [2, 1, 1] in B",
    ),
    ("channels", lambda p: p.describe(channel_names={"0": "MRI", "1": "T2"}), IN, "number of channels = 1 in A, but 2"),
    ("file_ending", lambda p: p.describe(file_ending=".nrrd"), IN, "file_ending = .nii.gz in A, but .nrrd in B"),
    (
        "reader",
        lambda p: p.reader("B", "NibabelIO"),
        IN,
        "image_reader_writer = SimpleITKIO in A, but NibabelIO in B",
    ),
    (
        "unknown_reader",
        lambda p: p.reader("AB", "MyIO"),
        IN,
        "image_reader_writer = 'MyIO' in the plans.json of A",
    ),
    ("no_folder", lambda p: shutil.rmtree(p.b.folder), IN, "no folder B"),
    ("a_file", lambda p: p.instead(""), IN, "no folder B"),
    ("empty_folder", lambda p: p.empty("*"), IN, "no file B/dataset.json"),
    ("no_plans", lambda p: p.b.path("plans.json").unlink(), IN, "no file B/plans.json"),
    ("cut_json", lambda p: p.b.path("dataset.json").write_text("{"), IN, "a damaged file B/dataset.json"),
    ("no_labels", lambda p: p.describe(labels=None), IN, "no labels in the dataset.json of B"),
    (
        "no_probabilities",
        lambda p: p.empty("*.npz"),
        IN,
        "no probabilities, CASE.npz, in B; expected one file per case; predict with --save_probabilities",
    ),
    ("case_missing", lambda p: p.b.path("b.npz").unlink(), IN, "no probabilities of 1 case (b) in B, but in A"),
    ("case_more", lambda p: p.a.path("b.npz").unlink(), IN, "no probabilities of 1 case (b) in A, but in B"),
    ("twice", lambda p: None, ["-i", "A", "B", "./A", "-o", "out"], "the folder A twice"),
    ("output_is_input", lambda p: None, ["-i", "A", "B", "-o", "./B"], "B as input and output"),
    (
        "output_links_to_input",
        lambda p: (p.root / "link").symlink_to(p.b.folder),
        ["-i", "A", "B", "-o", "link"],
        "link as input and output",
    ),
    ("output_is_a_file", lambda p: p.out.touch(), IN, "-o out, a file"),
    ("output_below_a_file", lambda p: p.out.touch(), ["-i", "A", "B", "-o", "out/below"], "writing out/below"),
    ("no_weight", lambda p: None, [*IN, "-w", "1"], "1 weights for 2 members; expected one per member"),
    ("no_number", lambda p: None, [*IN, "-w", "1", "x"], "-w 1 x; expected 2 numbers"),
    ("weight_of_0", lambda p: None, [*IN, "-w", "1", "0"], "-w 1 0; expected weights above 0"),
    ("weight_below_0", lambda p: None, [*IN, "-w", "1", "-1"], "-w 1 -1; expected weights above 0"),
    ("weight_nan", lambda p: None, [*IN, "-w", "1", "nan"], "-w 1 nan; expected weights above 0"),
    ("no_process", lambda p: None, [*IN, "-np", "0"], "-np 0; expected 1 or more"),
]


@pytest.mark.parametrize(("change", "arguments", "told"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(
    change: Change,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = Pair(tmp_path)
    change(pair)
    before = sorted(tmp_path.rglob("*"))
    status, out, error = run(pair, arguments, capsys, monkeypatch)
    assert status == 2 and out == ""
    assert re.fullmatch(r"nnunetv2_ext ensemble: got .*; expected .*; .*\.\n", error)
    assert told in error
    assert sorted(tmp_path.rglob("*")) == before


def _npz(pair: Pair, array: np.ndarray) -> None:
    np.savez_compressed(pair.b.path("b.npz"), probabilities=array)


def _cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def _rewrite(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", content)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _properties(pair: Pair, content: Any) -> None:
    pair.b.path("b.pkl").write_bytes(pickle.dumps(content))


class Marker:
    """What a pickle with code in it would make; harmless."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made_by_a_pickle",)


OF_CASE: list[tuple[str, Change, str]] = [
    (
        "one_slice",
        lambda p: p.b.write("b", p.b.probabilities("b")[:, :1]),
        "the case b of B with size (7, 6, 1) instead of (7, 6, 5)",
    ),
    (
        "spacing",
        lambda p: p.b.write("b", p.b.probabilities("b"), spacing=(0.7, 0.8, 2.0)),
        "with spacing (0.7, 0.8, 2) instead",
    ),
    (
        "origin",
        lambda p: p.b.write("b", p.b.probabilities("b"), origin=(0, 0, 0)),
        "with origin (0, 0, 0) instead of (-20, 15, 3.5)",
    ),
    ("no_properties", lambda p: p.b.path("b.pkl").unlink(), "no file B/b.pkl"),
    ("cut_properties", lambda p: _cut(p.b.path("b.pkl"), 30), "an unreadable file B/b.pkl"),
    ("properties_of_code", lambda p: _properties(p, Marker()), "which could run code"),
    ("properties_of_nothing", lambda p: _properties(p, [1]), "no properties in B/b.pkl"),
    ("properties_without_place", lambda p: _properties(p, {"x": 1}), "that do not tell where its voxels lie"),
    (
        "properties_of_another",
        lambda p: _properties(p, {**pickle.loads(p.b.path("b.pkl").read_bytes()), "shape_before_cropping": (9, 6, 7)}),
        "B/b.pkl of an image of 9 x 6 x 7 voxels; expected 5 x 6 x 7 as in b.npz beside it",
    ),
    ("heads", lambda p: _npz(p, np.zeros((2, 5, 6, 7), np.float32)), "2 outputs instead of 3, those of the labels"),
    ("cut_start", lambda p: _cut(p.b.path("b.npz"), 100), "a damaged file B/b.npz"),
    ("cut_end", lambda p: _cut(p.b.path("b.npz"), -1), "a damaged file B/b.npz"),
    ("empty", lambda p: p.b.path("b.npz").write_bytes(b""), "a damaged file B/b.npz"),
    ("a_byte", lambda p: _flip_a_byte(p.b.path("b.npz")), "a damaged file B/b.npz"),
    ("text", lambda p: p.b.path("b.npz").write_text("x" * 500), "a damaged file B/b.npz (File is not a zip file)"),
    ("a_folder", lambda p: p.instead("b.npz", folder=True), "a damaged file B/b.npz"),
    ("key", lambda p: np.savez(p.b.path("b.npz"), softmax=p.b.probabilities("b")), "a damaged file B/b.npz"),
    ("whole_numbers", lambda p: _npz(p, np.zeros((3, 5, 6, 7), np.uint8)), "bytes for uint8 of shape (3, 5, 6, 7)"),
    ("objects", lambda p: _npz(p, np.full((3, 5, 6, 7), None)), "bytes for object of shape (3, 5, 6, 7)"),
    ("no_heads", lambda p: _npz(p, np.zeros((5, 6, 7), np.float32)), "bytes for float32 of shape (5, 6, 7)"),
    ("no_voxels", lambda p: _npz(p, np.zeros((3, 0, 6, 7), np.float32)), "0 bytes for float32 of shape (3, 0, 6, 7)"),
    (
        "nan",
        lambda p: _npz(p, np.full((3, 5, 6, 7), np.nan, np.float32)),
        "a damaged file B/b.npz (values from nan to nan)",
    ),
    (
        "logits",
        lambda p: _npz(p, np.full((3, 5, 6, 7), -4, np.float32)),
        "a damaged file B/b.npz (values from -4 to -4)",
    ),
    ("short_array", lambda p: _rewrite(p.b.path("b.npz"), _npy(p.b.probabilities("b"))[:-4]), "a damaged file B/b.npz"),
    (
        "long_array",
        lambda p: _rewrite(p.b.path("b.npz"), _npy(p.b.probabilities("b")) + b"0"),
        "a damaged file B/b.npz",
    ),
    ("no_array", lambda p: _rewrite(p.b.path("b.npz"), b"x" * 900), "a damaged file B/b.npz"),
]


@pytest.mark.parametrize(("change", "told"), [case[1:] for case in OF_CASE], ids=[case[0] for case in OF_CASE])
def test_a_damaged_case_leaves_the_others(
    change: Change, told: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair(tmp_path)
    change(pair)
    status, out, _ = run(pair, [*IN, "--save_npz", "-np", "2"], capsys, monkeypatch)
    assert status == 1
    assert out.startswith("out: 2 cases of 2 members, 1 failed\n| failed | why |\n| --- | --- |\n| b | got ")
    assert told in out and re.search(r"; expected .*; .*\. \|\n$", out)
    made = [f"{case}{ending}" for case in "ac" for ending in (".nii.gz", ".npz", ".pkl")]
    assert names(pair.out) == sorted([*made, "dataset.json", "predict.json", "plans.json"])
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_all_is_well_at_once_and_again(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    assert run(pair, IN, capsys, monkeypatch)[:2] == (0, "out: 3 cases of 2 members\n")
    assert run(pair, IN, capsys, monkeypatch)[:2] == (0, "out: 0 cases of 2 members, 3 were there already\n")
    assert run(pair, [*IN, "--overwrite"], capsys, monkeypatch)[:2] == (0, "out: 3 cases of 2 members\n")


OTHERS: list[tuple[str, Change, list[str], str]] = [
    ("members", lambda p: None, ["-i", "A", "-o", "out"], "predictions of another model in out"),
    ("order", lambda p: None, ["-i", "B", "A", "-o", "out"], "predictions of another model in out"),
    ("weights", lambda p: None, [*IN, "-w", "1", "2"], "predictions of another model in out"),
    (
        "labels",
        lambda p: p.both(labels={"background": 0, "l": 1, "r": 2}),
        IN,
        "predictions with other labels in out",
    ),
    (
        "strangers",
        lambda p: (p.out / "d.nii.gz").touch(),
        IN,
        "1 file (d.nii.gz) in out of which no predict.json tells",
    ),
    ("no_record", lambda p: (p.out / "predict.json").unlink(), IN, "3 files (a.nii.gz, b.nii.gz, c.nii.gz) in out of"),
    ("cut_record", lambda p: (p.out / "predict.json").write_text("{"), IN, "a damaged file out/predict.json"),
    ("wrong_record", lambda p: (p.out / "predict.json").write_text('{"cases": 5}'), IN, "a damaged out/predict.json"),
]


@pytest.mark.parametrize(
    ("change", "arguments", "told"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS]
)
def test_other_predictions_stay(
    change: Change,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = Pair(tmp_path)
    assert run(pair, IN, capsys, monkeypatch)[0] == 0
    change(pair)
    before = {path: path.read_bytes() for path in pair.out.iterdir()}
    status, out, error = run(pair, arguments, capsys, monkeypatch)
    assert (status, out) == (2, "") and told in error
    assert before == {path: path.read_bytes() for path in pair.out.iterdir()}
    (pair.out / "d.nii.gz").unlink(missing_ok=True)
    assert run(pair, [*arguments, "--overwrite"], capsys, monkeypatch)[0] == 0
    assert len(label_files(pair.out)) == 3


@pytest.mark.parametrize("entry", [{}, {"inputs": 5}, {"inputs": {"x": [1]}, "outputs": {}}])
def test_an_entry_of_the_record_that_tells_nothing_counts_for_none(
    entry: Any, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair(tmp_path)
    assert run(pair, IN, capsys, monkeypatch)[0] == 0
    record = pair.out / "predict.json"
    content = json.loads(record.read_text())
    content["cases"]["b"] = entry
    record.write_text(json.dumps(content))
    assert run(pair, IN, capsys, monkeypatch)[:2] == (0, "out: 1 case of 2 members, 2 were there already\n")


def test_one_at_a_time(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    pair.out.mkdir()
    process = os.fork()
    if not process:  # holds the folder until it is read from
        with held(pair.out, "predict.json", "an ensemble"):
            (tmp_path / "held").touch()
            while not (tmp_path / "end").exists():
                time.sleep(0.01)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    status, _, error = run(pair, IN, capsys, monkeypatch)
    (tmp_path / "end").touch()
    os.waitpid(process, 0)
    assert status == 2 and f"process {process} on" in error and "expected one at a time" in error
    assert run(pair, IN, capsys, monkeypatch)[0] == 0
