"""Trainers that nnU-Net does not find, because they are no part of the plugin."""

from nnunetv2_ext.entry import Entry

OWN = (Entry("PrimusTrainer", "benchmarks._primus.PrimusTrainer", "Primus S on plans of ConvFreeTransformer"),)


def trainer_for(name: str) -> str | type:
    """What `train_fold` and `make_trainer` take: the class of a trainer of this file, any other name as it is."""
    own = {entry.name: entry for entry in OWN}
    return own[name].load() if name in own else name
