"""``python -m semo_sdk.cli``: what ``accelerate launch -m`` and ``torchrun -m`` start."""

from __future__ import annotations

from semo_sdk.cli import main

if __name__ == "__main__":
    main()
