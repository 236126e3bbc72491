"""The jobs that come after trainings: which, in which order, and what is left out."""

import os
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.jobs.afterwards import afterwards
from nnunetv2_ext.jobs.graph import How, job_name, trainings
from nnunetv2_ext.jobs.record import Resources
from tests.doctor.conftest import DATASET, Prepared
from tests.jobs.test_graph import CPU, OURS, STOCK, by_name, empty, finish

DONE = ("a", "b")
ALL = ("find_best", "predict", "evaluate", "report")


def after(prepared: Prepared, models: list[Model], steps: tuple[str, ...], folds: str = "01", **more: Any) -> Any:
    output = prepared.results.parent / "out"
    return afterwards(DATASET, models, [*folds.split("/")] if "/" in folds else [*folds], steps, output, CPU, **more)


def test_what_comes_after_several_models(prepared: Prepared) -> None:
    for name in ("imagesTs", "labelsTs"):
        prepared.write(prepared.raw / name / "case.nii.gz", b"")
    wanted = after(prepared, [OURS, STOCK], ALL, after=DONE, images=prepared.raw / "imagesTs")
    jobs = by_name(wanted.jobs)
    out, predictions = prepared.results.parent / "out", prepared.results.parent / "out" / "predictions"
    names = ["MNetTrainer__MNetPlans__3d_fullres", "nnUNetTrainer__nnUNetPlans__3d_fullres", "ensemble"]
    both = f"-m {OURS} {STOCK} -f 0 1"
    flags = f"-i {prepared.raw / 'imagesTs'} -o"
    assert {name: " ".join(job.command[1:]) for name, job in jobs.items()} == {
        "find_best": f"find_best -d {DATASET} {both} -device cpu -o {out / 'best.json'}",
        **{
            f"predict_{name}": f"predict -d {DATASET} {which} {flags} {predictions / name}"
            " --disable_progress_bar -device cpu"
            for name, which in zip(names, (f"-m {OURS} -f 0 1", f"-m {STOCK} -f 0 1", both), strict=True)
        },
        "evaluate": f"evaluate -r {prepared.raw / 'labelsTs'} -p {' '.join(str(predictions / n) for n in names)}"
        f" --names {OURS} {STOCK} ensemble -o {out / 'evaluation'} --overwrite --disable_progress_bar",
        "report": f"report {out / 'evaluation'} -o {out / 'report.html'}",
    }
    assert {name: job.needs for name, job in jobs.items()} == {
        "find_best": DONE,
        **{f"predict_{name}": DONE for name in names},
        "evaluate": tuple(f"predict_{name}" for name in names),
        "report": ("evaluate",),
    }
    assert {job.command[0] for job in wanted.jobs} == {"nnunetv2_ext"}
    assert wanted.told == ()


@pytest.mark.parametrize(
    ("asked", "without"),
    [
        (Resources(gpus=(0, 3), minutes=5), Resources(minutes=5)),
        (Resources(gres="gpu:1", cpus=4, partition="gpu"), Resources(cpus=4, partition="gpu")),
        (Resources(gres="gpu:a100:2,tmpdisk:9"), Resources(gres="tmpdisk:9")),
        (Resources(lines=("--qos=long", "--gpus=1", "--gpus-per-node 1")), Resources(lines=("--qos=long",))),
        (Resources(jobs=2), Resources(jobs=2)),
    ],
)
def test_only_trainings_and_predictions_hold_a_gpu(prepared: Prepared, asked: Resources, without: Resources) -> None:
    prepared.write_images()
    empty(prepared)
    prepared.write(prepared.raw / "imagesTs" / "case_0000.nii.gz", b"")
    how = How(resources=asked)
    jobs = trainings(DATASET, [OURS], ["0"], {}, how).jobs
    images = prepared.raw / "imagesTs"
    jobs += afterwards(DATASET, [OURS], ["0"], ALL, prepared.results.parent / "out", how, images=images).jobs
    assert {job.name.partition("_")[0]: job.resources for job in jobs} == {
        **dict.fromkeys(("MNetTrainer", "predict"), asked),
        **dict.fromkeys(("preprocess", "find", "evaluate", "report"), without),
    }


@pytest.mark.parametrize(
    ("how", "exported", "processes"),
    [
        (How(), None, 8),
        (How(resources=Resources(cpus=4), engine="slurm"), None, 4),
        (How(resources=Resources(cpus=40), engine="slurm"), None, 8),
        (How(engine="slurm"), None, 1),
        (How(resources=Resources(cpus=4), engine="slurm"), "6", 4),
    ],
)
def test_no_more_processes_than_a_job_has_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: How, exported: str | None, processes: int
) -> None:
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", int(exported or 8))
    monkeypatch.setattr("nnunetv2_ext.jobs.graph.cores", lambda: 16)
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    if exported:
        monkeypatch.setenv("nnUNet_def_n_proc", exported)
    job = how.job("evaluate", ["true"])
    assert (how.processes, job.environment["nnUNet_def_n_proc"]) == (processes, exported or str(processes))


@pytest.mark.parametrize(
    ("steps", "folds", "names", "told"),
    [
        (ALL, "01", ["find_best", "evaluate", "report"], "no images"),
        (("report",), "01", [], "no evaluation in"),
        (("find_best", "evaluate"), "0/all", ["evaluate"], "find_best is left out"),
        (("evaluate", "report"), "01", ["evaluate", "report"], ""),
    ],
)
def test_steps_that_cannot_run_are_told(
    prepared: Prepared, steps: tuple[str, ...], folds: str, names: list[str], told: str
) -> None:
    wanted = after(prepared, [OURS], steps, folds)
    assert [job.name for job in wanted.jobs] == names
    assert told in " ".join(wanted.told)
    assert bool(told) == bool(wanted.told)
    for job in wanted.jobs:
        if job.name == "evaluate":  # of the validations
            assert job.command[1:5] == ("evaluate", "-d", DATASET, "-m")


def test_labels_are_audited_by_the_first_model(prepared: Prepared) -> None:
    trained = [job_name(model, fold) for model in (OURS, STOCK) for fold in ("0", "1", "all")]
    wanted = after(prepared, [OURS, STOCK], ("evaluate", "audit"), "0/1/all", after=trained, validated=10)
    jobs = by_name(wanted.jobs)
    place = prepared.results.parent / "out" / "audit"
    assert " ".join(jobs["audit"].command) == (
        f"nnunetv2_ext audit -d {DATASET} --from validation -m {OURS} -o {place} --overwrite --disable_progress_bar"
    )
    assert jobs["audit"].needs == tuple(trained[:2]), "fold `all` validates what it was trained with"
    assert not any("audit" in job.needs for job in wanted.jobs), "no other job waits for it"
    folder = prepared.results / OURS.folder_name
    assert wanted.reads["audit"] == tuple(folder / f"fold_{fold}/validation/summary.json" for fold in ("0", "1", "all"))


def test_too_few_cases_are_not_audited(prepared: Prepared) -> None:
    wanted = after(prepared, [OURS], ("evaluate", "audit"), after=DONE, validated=9)
    assert [job.name for job in wanted.jobs] == ["evaluate"]
    assert "audit is left out: it needs 10 cases" in wanted.told[0] and "there are 9" in wanted.told[0]


def test_images_of_no_labels_are_predicted_and_the_validations_measured(prepared: Prepared, tmp_path: Path) -> None:
    prepared.write(tmp_path / "new" / "case_0000.nii.gz", b"")
    wanted = after(prepared, [OURS], ("predict", "evaluate"), images=tmp_path / "new")
    jobs = by_name(wanted.jobs)
    assert [*jobs] == [f"predict_{OURS.folder_name}", "evaluate"], "one model is no ensemble"
    assert jobs["evaluate"].command[2] == "-d"
    assert wanted.told == (f"evaluate measures the validations: no labels beside {tmp_path / 'new'}",)


def test_predictions_of_an_earlier_training_are_replaced(prepared: Prepared) -> None:
    images = prepared.raw / "imagesTs"
    prepared.write(images / "case_0000.nii.gz", b"")
    predictions = prepared.results.parent / "out" / "predictions" / OURS.folder_name
    prepared.write(predictions / "predict.json", {})

    def anew(**more: Any) -> bool:
        return "--overwrite" in after(prepared, [OURS], ("predict",), images=images, **more).jobs[0].command

    assert anew(after=DONE) and not anew()
    fold = finish(prepared, OURS, "0")
    os.utime(fold / "checkpoint_final.pth", (3e9, 3e9))  # by hand, since
    assert anew()
    os.utime(predictions / "predict.json", (4e9, 4e9))
    assert not anew()
