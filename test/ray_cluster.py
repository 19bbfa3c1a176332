"""Two nodes of Ray on loopback, with a processor each."""

import contextlib
import os
import tempfile
from unittest.mock import patch

_ENVIRONMENT = {
    'RAY_USAGE_STATS_ENABLED': '0',
    # Of the token that a user's own clusters ask for, `Cluster` tells its nodes nothing.
    'RAY_AUTH_MODE': 'disabled',
    # It ends workers where other processes have filled the machine's memory.
    'RAY_memory_monitor_refresh_ms': '0',
}

_NODE = {
    'num_cpus': 1,
    # Loopback; as 127.0.0.1 Ray would take it for the machine's address in its network.
    'node_ip_address': '127.0.0.2',
    'object_store_memory': 80 << 20,
    'include_log_monitor': False,
}


@contextlib.contextmanager
def two_nodes(environment):
    """Two nodes, of which nothing is left when the context ends.

    Args:
        environment: Variables of their workers, which have those of their node and not those of
            the process that gives them work.

    Yields:
        The `ray.cluster_utils.Cluster`: `address` is what `ray.init` takes, and `remove_node` ends
        one of `worker_nodes`, the second node.
    """
    from ray.cluster_utils import Cluster

    # Paths of sockets have to be short, which pytest's folders are not. The address that
    # `ray.init('auto')` finds is written there as well, not over that of the user's own cluster.
    with (
        tempfile.TemporaryDirectory(prefix='ray_') as folder,
        patch.dict(os.environ, {**_ENVIRONMENT, **environment, 'RAY_TMPDIR': folder}),
    ):
        cluster = Cluster()
        try:
            cluster.add_node(include_dashboard=False, no_monitor=True, **_NODE)
            cluster.add_node(**_NODE)
            yield cluster
        finally:
            cluster.shutdown()
