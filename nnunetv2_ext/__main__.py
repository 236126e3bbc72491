"""`python -m nnunetv2_ext`."""

from nnunetv2_ext.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
