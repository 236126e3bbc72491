"""BackbonePlanner: plans for any backbone of the list, without a refiner.

The backbones' papers stand in the list (`nnunetv2_ext list`).
"""

from nnunetv2_ext.planning.backbones import PlannerOfBackbones


class BackbonePlanner(PlannerOfBackbones):
    """Plans patch and batch for the network that `--backbone` names, to train it as it is."""

    architecture = "BackboneNetwork"
    trainer = "BackboneTrainer"
    plans_name = "BackbonePlans"
