"""Measurements with a hardware fingerprint: speed (``latency`` of one session, ``throughput`` of batches, live
``sessions`` in one process, ``load`` on a server), ``lipsync`` (does the mouth follow speech) and ``quality``
(pictures, speech, identity, long runs and silence, beside baselines).

Each is a command (``python -m semo_sdk.benchmarks.latency``, or ``semo bench latency``) that prints a table
and writes JSON.
"""
