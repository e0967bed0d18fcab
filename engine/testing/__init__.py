"""The test kit: a cluster in one process, in memory or on PostgreSQL, on a clock of its own.

Nothing in it is global: any number of clusters live side by side, and tests run in parallel. See
``docs/testing.md``.
"""

from engine.history import History
from engine.storage.memory_database import Fault
from engine.testing.clock import VirtualClock
from engine.testing.cluster import TestCluster
from engine.testing.crashes import CrashOutcome, crash_at_every_step
from engine.testing.linter import Finding, lint_files, lint_source, lint_workflows
from engine.testing.replay import load_histories, replay
from engine.testing.stub import Stub, stub

__all__ = [
    "CrashOutcome",
    "Fault",
    "Finding",
    "History",
    "Stub",
    "TestCluster",
    "VirtualClock",
    "crash_at_every_step",
    "lint_files",
    "lint_source",
    "lint_workflows",
    "load_histories",
    "replay",
    "stub",
]
