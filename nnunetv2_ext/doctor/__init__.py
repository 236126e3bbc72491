"""What `nnunetv2_ext doctor` checks, each fault with its remedy."""
