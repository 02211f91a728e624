"""A Ray cluster of several nodes on this machine, in a process of its own: ``python ray_nodes.py NODES CPUS``.

Prints the address, then does what it reads, a line each: ``kill`` (a worker node, hard), ``add``, ``nodes``; ends with
its input.
"""

import os
import sys

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0", "RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0",
}  # fmt: skip
from ray.cluster_utils import Cluster

STORE = 80 << 20


def main() -> None:
    count, cpus = int(sys.argv[1]), float(sys.argv[2])
    head = {"num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=STORE) for _ in range(count - 1)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        elif line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=cpus, object_store_memory=STORE))
        print(line.strip(), flush=True)
    cluster.shutdown()


main()
