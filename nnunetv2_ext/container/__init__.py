"""A trained model as a container: what `nnunetv2_ext container` writes, and what runs inside."""
