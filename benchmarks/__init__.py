"""Measurements with a hardware fingerprint: ``latency`` (speed), ``lipsync`` (does the mouth follow speech),
``quality`` (pictures, speech, identity, long runs and silence, beside baselines).

Each is a command (``python -m semo_sdk.benchmarks.latency``, or ``semo bench latency``) that prints a table
and writes JSON.
"""
