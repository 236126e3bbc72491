"""From images through real commands to scores: predict, evaluate, and a model that is trained anew in between."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.evaluation.scores import read_scores
from nnunetv2_ext.evaluation.summary import read_summaries
from tests.tiny_models import NUMBER, write_images, write_model

MODEL = "nnUNetTrainer:nnUNetPlans:3d_fullres"


@pytest.mark.usefixtures("light")
def test_predictions_know_their_model(nnunet_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(nnunet_folders)
    images = write_images(nnunet_folders / "images", 2)
    predict = ["predict", "-d", str(NUMBER), "-m", MODEL, "-i", str(images), "-o", str(nnunet_folders / "predicted")]
    predict += ["--disable_tta", "-device", "cpu", "--disable_progress_bar"]
    assert main(predict) == 0
    (nnunet_folders / "labels").mkdir()
    voxels = {}
    for path in sorted((nnunet_folders / "predicted").glob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        voxels[path.name[:2]] = labels = sitk.GetArrayFromImage(image)
        shifted = sitk.GetImageFromArray(np.roll(labels, 1, axis=0))
        shifted.CopyInformation(image)
        sitk.WriteImage(shifted, str(nnunet_folders / "labels" / path.name))
    evaluate = ["evaluate", "-r", str(nnunet_folders / "labels"), "-p", str(nnunet_folders / "predicted")]
    evaluate += ["-o", str(nnunet_folders / "scores"), "--disable_progress_bar", "-np", "2"]
    assert main(evaluate) == 0
    assert read_summaries(nnunet_folders / "scores")["predicted"].model_folders == (model,)
    for case, dice in read_scores(nnunet_folders / "scores").values("predicted", "liver", "Dice").items():
        one, other = (voxels[case] == 1, np.roll(voxels[case], 1, axis=0) == 1)
        assert dice == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))

    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    first = next(iter(content["network_weights"].values()))
    first += 0.01
    torch.save(content, checkpoint)
    capsys.readouterr()
    assert main(evaluate) == 2
    assert f"older than {checkpoint}" in capsys.readouterr().err
    assert main([*predict, "--overwrite"]) == 0  # the remedy
    assert main(evaluate) == 0
