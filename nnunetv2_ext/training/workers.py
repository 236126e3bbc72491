"""Data workers that end with the training that started them, even when it is killed."""

import os
import threading
import time
from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

POLL_SECONDS = 0.5


class EndWithTraining(BasicTransform):
    """Leaves samples as they are; in a worker process it starts a watch that ends the worker when its parent is gone.

    nnU-Net's workers never look at their parent, and wait for ever on a full queue after it was killed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.training_process = os.getpid()
        self.watching: int | None = None

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        process = os.getpid()
        if process not in (self.training_process, self.watching):
            self.watching = process
            # the training itself, or the server that forks for it and ends with it
            parent = os.getppid()
            if parent == 1 != self.training_process:  # gone already
                os._exit(1)
            threading.Thread(target=self._watch, args=(parent,), daemon=True).start()
        return data_dict

    @staticmethod
    def _watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)
