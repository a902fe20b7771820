"""The GPU side: trains, measures and serves. The only place where tensors live."""

from __future__ import annotations

import os

# Before torch loads OpenMP, which reads it once. A thread that waits for the others of its step otherwise spins, and
# where other processes want the processor, steps become several times as slow (benchmarks/waiting_threads.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
