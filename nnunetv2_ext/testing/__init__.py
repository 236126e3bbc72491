"""The contract of networks and trainers as functions: what our own tests run, for a network or trainer of yours.

    from nnunetv2_ext.testing import check_network, check_trainer

    check_network(Net, (8, 32, 32), features=8)
    check_trainer("NetTrainer", planner="my_package.NetPlanner")

Each ends without a word, or in an AssertionError that says what does not hold.
"""

from nnunetv2_ext.testing.network import NETWORK_CHECKS, NetworkCase, check_network
from nnunetv2_ext.testing.trainer import Commands, Shell, check_trainer

__all__ = ["NETWORK_CHECKS", "Commands", "NetworkCase", "Shell", "check_network", "check_trainer"]
