"""OpenVINO, imported without its telemetry.

``import openvino`` reports itself to its makers, from a process that it forks. An app with people's faces and voices
must not call home unasked, and a server with threads must not fork. Whoever wants the reports imports openvino first.
"""

from __future__ import annotations

import sys
from typing import Any

TELEMETRY = "openvino_telemetry"


def load_openvino() -> Any:
    """The module ``openvino``.

    Raises:
        ImportError: it is not installed.
    """
    if TELEMETRY in sys.modules:
        import openvino

        return openvino
    sys.modules[TELEMETRY] = None  # type: ignore[assignment] # OpenVINO has a stub for where it is missing
    try:
        import openvino

        return openvino
    finally:
        del sys.modules[TELEMETRY]
