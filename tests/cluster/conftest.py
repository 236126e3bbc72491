"""A real SLURM for the tests of this folder, without and with accounting; skipped where its packages are missing."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.daemons import Cluster, missing
from tests.pipeline.conftest import pipeline as pipeline


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.pipeline)


@pytest.fixture(scope="module", params=[False, True], ids=["unaccounted", "accounted"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running cluster of one node, which commands of this process speak to."""
    pytest.importorskip("submitit")
    if why := missing(accounting=request.param):
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder, pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(Path(folder), accounting=request.param, min_job_age=2)
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setenv("PATH", cluster.environment["PATH"])
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
