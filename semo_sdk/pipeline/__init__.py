"""The arrows of the data-flow picture, one file each, on whatever engine runs them.

Images, sound and tokens are numpy arrays with a leading batch axis ``B``; only :mod:`semo_sdk.pipeline.stream`
speaks of one speaker at a time.
"""
