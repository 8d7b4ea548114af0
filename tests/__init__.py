"""Tests: real engines, real ffmpeg, properties rather than examples."""
