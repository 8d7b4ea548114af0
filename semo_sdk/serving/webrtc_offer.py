"""What an offer may contain, before aiortc sees it."""

from __future__ import annotations

import contextlib
import ipaddress

from semo_sdk.serving.problems import ApiError

__all__ = ["checked_offer"]

MAX_CANDIDATES = 16


def checked_offer(sdp: str, *, keep_candidates: bool) -> str:
    """An offer without what the server does not use.

    The addresses that a client names are those that the server would send packets to. A server that clients can reach
    needs none of them: it learns a client's address from its first packet.

    Args:
        sdp: of an offer.
        keep_candidates: keep the UDP addresses; names are never looked up.

    Raises:
        ApiError: not one video, one data channel and at most one audio, all on one transport.
    """
    kinds: list[str] = []
    names: list[str] = []
    bundle: list[str] = []
    lines: list[str] = []
    candidates = 0
    for line in sdp.splitlines():
        key, _, value = line.partition(":")
        if line.startswith("m="):
            kinds.append(line[2:].partition(" ")[0])
        elif key == "a=mid":
            names.append(value.strip())
        elif key == "a=group" and value.startswith("BUNDLE "):
            bundle += value.split()[1:]
        elif key == "a=candidate":
            candidates += keep_candidates and _is_plain_udp(line)
            if not keep_candidates or not _is_plain_udp(line) or candidates > MAX_CANDIDATES:
                continue
        elif key == "a=end-of-candidates" and not keep_candidates:
            continue
        lines.append(line)
    if sorted(kinds) not in (["application", "video"], ["application", "audio", "video"]):
        raise ApiError(400, "invalid_offer", "an offer has one audio, one video and one data channel", param="sdp")
    if len(set(names)) != len(kinds) or sorted(bundle) != sorted(names):
        raise ApiError(400, "invalid_offer", "an offer bundles all its media", param="sdp")
    return "\r\n".join(lines) + "\r\n"


def _is_plain_udp(candidate: str) -> bool:
    """Whether a candidate line names an address, not a host, for UDP."""
    fields = candidate.split()
    with contextlib.suppress(ValueError):
        return len(fields) > 5 and fields[2].lower() == "udp" and bool(ipaddress.ip_address(fields[4]))
    return False
