"""Random numbers that follow from `training.seed` and from the place in the training, whatever came before.

Each batch is drawn from (seed, stream, its number), the rest of an epoch from (seed, stream, epoch). So a resumed
training goes on with the numbers of one that was never stopped, and one data worker draws what the training itself
would. Several workers hand their batches over in any order.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

WEIGHTS, EPOCHS, TRAINING, VALIDATION = range(4)
"""The streams of random numbers of one training."""


def seed_all(*place: int) -> None:
    """Start Python's, NumPy's and PyTorch's random numbers, those of a GPU too, from a place such as (seed, 0, 3)."""
    _seed_cpu(place)
    torch.manual_seed(_words(place, 1)[0])


def _words(place: tuple[int, ...], number: int) -> list[int]:
    return np.random.SeedSequence(place).generate_state(number).tolist()


def _seed_cpu(place: tuple[int, ...]) -> None:
    random.seed(_words(place, 1)[0])
    np.random.seed(_words(place, 4))  # noqa: NPY002 (nnU-Net draws from it)
    torch.default_generator.manual_seed(_words(place, 1)[0])


@contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Random numbers from a place; afterwards those of the CPU go on as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    _seed_cpu(place)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class SeededBatches:
    """nnU-Net's loader, each batch from the place of its number.

    Args:
        loader: it draws with replacement, and so holds no state of its own.
        place: seed and stream.
        first: the number of the first batch.
        workers: processes that share the numbers: the worker w makes first + w, first + w + workers, ...
    """

    def __init__(self, loader: Any, place: tuple[int, ...], first: int, workers: int):
        self.loader, self.place, self.number, self.workers = loader, place, first, workers

    def set_thread_id(self, worker: int) -> None:
        """Called in a worker, before its first batch."""
        self.loader.set_thread_id(worker)
        self.number += worker

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> Any:
        with seeded(*self.place, self.number):
            self.number += self.workers
            return next(self.loader)


def with_seed(batches: Any, place: tuple[int, ...], first: int) -> Any:
    """nnU-Net's generator of batches, begun anew with seeded ones; its workers end.

    Args:
        batches: a `SingleThreadedAugmenter` or a `NonDetMultiThreadedAugmenter`.
        place: seed and stream.
        first: the number of the first batch.
    """
    if not isinstance(batches, NonDetMultiThreadedAugmenter):
        batches.data_loader = SeededBatches(batches.data_loader, place, first, 1)
        return batches
    batches._finish()
    workers = batches.num_processes
    return NonDetMultiThreadedAugmenter(
        SeededBatches(batches.generator, place, first, workers),
        None,
        workers,
        num_cached=batches.num_cached,
        pin_memory=batches.pin_memory,
        wait_time=batches.wait_time,
    )
