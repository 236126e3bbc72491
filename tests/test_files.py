"""Names of new data sets: nnU-Net refuses an id with two names."""

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import new_dataset_name


@pytest.mark.parametrize(
    ("output", "name", "made"),
    [
        (4, "Liver", "Dataset004_Liver"),
        ("042", "Liver_3.7mm", "Dataset042_Liver_3.7mm"),
        (999, "a+b-c", "Dataset999_a+b-c"),
    ],
)
def test_new_name(nnunet_folders, output, name, made):
    # Neither files nor other data sets have the id.
    (nnunet_folders / "nnUNet_raw" / f"{made}.zip").touch()
    (nnunet_folders / "nnUNet_raw" / "Dataset005_Liver").mkdir()
    assert new_dataset_name(output, name) == made


@pytest.mark.parametrize(
    ("output", "name", "sentence"),
    [
        ("Dataset004", "Liver", "output data set 'Dataset004'; expected an id of 0 to 999"),
        (1000, "Liver", "output data set '1000'"),
        (-1, "Liver", "output data set '-1'"),
        ("", "Liver", "output data set ''"),
        (4, "", "name ''; expected what follows DatasetXXX_"),
        (4, "../x", "name '../x'"),
        (4, "two words", "name 'two words'"),
        (4, "Dataset004_Liver", "name 'Dataset004_Liver'"),
    ],
)
def test_no_name(nnunet_folders, output, name, sentence):
    with pytest.raises(InputError, match=sentence):
        new_dataset_name(output, name)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_id_of_another_data_set(nnunet_folders, variable):
    (nnunet_folders / variable / "Dataset004_Other").mkdir()
    with pytest.raises(InputError, match=f"output id 4, which .*{variable}/Dataset004_Other has"):
        new_dataset_name(4, "Liver")
