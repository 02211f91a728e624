"""The statistics behind every claim: pure functions, numpy in, dataclasses out. ``docs/stats.md`` shows them at work.

What is listed here is stable: names, arguments and fields change only with a new major version.
"""

from bench.metrics.calibration import Reliability, brier, ece, reliability, temperature, wilson
from bench.metrics.operating import net_benefit, treat_all
from bench.stats.cluster import Share, share
from bench.stats.leader import AgainstLeader, LeaderTest, against_leader
from bench.stats.notebook import Compared, DeLong, Difference, Interval, bootstrap_interval, compare, delong
from bench.stats.paired import holm, mcnemar
from bench.stats.ranking import Friedman, friedman, letters, rank_intervals, tie_groups

__all__ = [
    "AgainstLeader",
    "Compared",
    "DeLong",
    "Difference",
    "Friedman",
    "Interval",
    "LeaderTest",
    "Reliability",
    "Share",
    "against_leader",
    "bootstrap_interval",
    "brier",
    "compare",
    "delong",
    "ece",
    "friedman",
    "holm",
    "letters",
    "mcnemar",
    "net_benefit",
    "rank_intervals",
    "reliability",
    "share",
    "temperature",
    "tie_groups",
    "treat_all",
    "wilson",
]
