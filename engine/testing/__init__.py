"""The test kit: a cluster in one process, in memory or on PostgreSQL, on a clock of its own."""

from engine.testing.clock import VirtualClock
from engine.testing.cluster import TestCluster

__all__ = ["TestCluster", "VirtualClock"]
