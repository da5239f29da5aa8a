"""Rows looked at on a cluster of two nodes give what one process finds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import InputError
from tests.gate.corpus import everything

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each on this machine, each with processes and an object store of its own."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
    yield nodes
    nodes.shutdown()


def test_a_cluster_finds_what_one_process_finds(cluster: Any, tmp_path: Path) -> None:
    there = everything(tmp_path, workers=cluster.address, chunk_rows=20)
    assert there == everything(tmp_path, workers=0)
    assert there[1], "there was something to find"


def test_both_nodes_have_looked(cluster: Any) -> None:
    nodes = [node for node in cluster.list_all_nodes() if node.live_processes()]
    assert len(nodes) == 2


def test_a_cluster_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Ray cluster answers"):
        everything(tmp_path, workers="127.0.0.1:1", chunk_rows=20)
