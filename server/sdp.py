"""Looks at a stranger's SDP before anything costly does: counts, caps, and which m-line is what.

Parsing proper is left to the WebRTC stack; this reads only what decides whether to hand it over at all.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from server.errors import ApiError, bad_request

MAX_SDP_BYTES = 128 * 1024
MAX_CANDIDATES = 30
MAX_SECTIONS = {"audio": 2, "video": 1, "application": 1}
MAX_LINE = 2048

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
_DIRECTIONS: tuple[Direction, ...] = ("sendrecv", "sendonly", "recvonly", "inactive")


@dataclass(frozen=True, slots=True)
class Section:
    """One m-line of an offer. direction is the offerer's: sendonly means that media comes to us."""

    kind: str
    mid: str
    direction: Direction

    @property
    def sends(self) -> bool:
        """Whether the offerer wants to send on it."""
        return self.direction in ("sendrecv", "sendonly")

    @property
    def receives(self) -> bool:
        """Whether the offerer wants to receive on it."""
        return self.direction in ("sendrecv", "recvonly")


@dataclass(frozen=True, slots=True)
class Offer:
    """A vetted offer: the SDP to hand over, its m-lines in order, and the candidates taken out of it."""

    sdp: str
    sections: tuple[Section, ...]
    candidates: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[Section, ...]:
        return tuple(section for section in self.sections if section.kind == kind)


def broken(message: str) -> ApiError:
    """The refusal of an SDP that cannot be read."""
    return bad_request(
        "bad_sdp",
        f"the SDP cannot be used: {message}",
        "send RTCPeerConnection.localDescription.sdp unchanged",
    )


def vet_offer(text: str, allow_private: bool = True) -> Offer:
    """Check an offer's size and shape, and take its candidates out of it.

    Raises ApiError: 413 for more than 128 KiB, 400 for too many m-lines or candidates or for what is no SDP.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SDP_BYTES:
        raise ApiError(
            413, "sdp_too_large", "the SDP is larger than 128 KiB", "offer fewer tracks and codecs"
        )
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines or not lines[0].startswith("v=0"):
        raise broken("it does not begin with v=0")
    if any(len(line) > MAX_LINE for line in lines):
        raise broken(f"a line is longer than {MAX_LINE} characters")
    sections: list[Section] = []
    kept: list[str] = []
    candidates: list[str] = []
    session_direction: Direction = "sendrecv"
    for line in lines:
        attribute = line.removeprefix("a=").strip()
        if line.startswith("m="):
            sections.append(Section(line[2:].split(" ", 1)[0], "", session_direction))
        elif line.startswith("a=candidate:"):
            candidates.append(attribute)
            continue
        elif line.startswith("a=end-of-candidates"):
            # Peers that hide their addresses are found by their own checks; ending the list here would make
            # ICE give up on them before those arrive. A timeout of ours ends what never connects.
            continue
        elif attribute in _DIRECTIONS:
            session_direction = _set_direction(sections, attribute, session_direction)
        elif line.startswith("a=mid:") and sections:
            last = sections[-1]
            sections[-1] = Section(last.kind, attribute.removeprefix("mid:"), last.direction)
        kept.append(line)
    if not any(line.startswith("a=fingerprint:") for line in kept):
        raise broken("it has no a=fingerprint, without which nothing can be encrypted")
    _check_counts(sections, len(candidates))
    admitted = tuple(line for line in candidates if admits_candidate(line, allow_private))
    return Offer("\r\n".join(kept), tuple(sections), admitted)


def _set_direction(sections: list[Section], attribute: str, session: Direction) -> Direction:
    direction = next(d for d in _DIRECTIONS if d == attribute)
    if not sections:
        return direction
    last = sections[-1]
    sections[-1] = Section(last.kind, last.mid, direction)
    return session


def _check_counts(sections: list[Section], candidates: int) -> None:
    if not sections:
        raise broken("it has no m-line")
    for kind in {section.kind for section in sections}:
        count = sum(section.kind == kind for section in sections)
        if count > MAX_SECTIONS.get(kind, 0):
            raise bad_request(
                "too_many_tracks",
                f"the SDP has {count} m-lines of kind {kind[:20]!r}",
                "offer at most two of audio, one of video and one data channel",
            )
    mids = [section.mid for section in sections]
    if "" in mids or len(set(mids)) < len(mids):
        raise broken("its m-lines need one a=mid each, all different")
    if candidates > MAX_CANDIDATES:
        raise bad_request(
            "too_many_candidates",
            f"the SDP has {candidates} candidates",
            f"send at most {MAX_CANDIDATES}",
        )


def admits_candidate(candidate: str, allow_private: bool = True) -> bool:
    """Whether ICE may send to a remote candidate ("candidate:..." as in SDP).

    Never to multicast, link-local (cloud metadata lives there) or unspecified addresses, nor over TCP, which
    is not spoken here; to private and loopback ones only where allowed. Names (mDNS) are not looked up: such
    a peer is found by its own checks.
    """
    fields = candidate.removeprefix("candidate:").split()
    if len(fields) < 8 or fields[2].lower() != "udp":
        return False
    try:
        address = ipaddress.ip_address(fields[4])
        port = int(fields[5])
    except ValueError:
        return False
    if not 0 < port < 65536 or address.is_multicast or address.is_link_local or address.is_unspecified:
        return False
    return allow_private or address.is_global
