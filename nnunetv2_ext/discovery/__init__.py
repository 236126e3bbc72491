"""The folder that `nnUNet_extTrainer` points at; see `nnunetv2_ext_trainers`."""
