"""Saying that a video is AI-generated: a watermark in its frames and a signed C2PA manifest in its file.

- :mod:`~semo_sdk.provenance.code`: the key, the payload, and the pattern that carries it.
- :mod:`~semo_sdk.provenance.watermark`: puts the pattern into frames.
- :mod:`~semo_sdk.provenance.detect`: finds it again.
- :mod:`~semo_sdk.provenance.signing`: whose signature a manifest carries.
- :mod:`~semo_sdk.provenance.manifest`: writes and reads manifests.
- :mod:`~semo_sdk.provenance.policy`: what a model's outputs carry.
- :mod:`~semo_sdk.provenance.verify`: reads both.
"""
