"""What is read off a stranger's SDP before it is handed on."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.peers import Role, choose_voice
from server.sdp import Offer, Section, admits_candidate, vet_offer

HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=fingerprint:sha-256 AA\r\n"


def section(kind: str, mid: str, direction: str = "sendrecv") -> str:
    return f"m={kind} 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:{mid}\r\na={direction}\r\n"


def test_the_m_lines_are_told_apart() -> None:
    offer = vet_offer(HEAD + section("audio", "a", "sendonly") + section("video", "b", "recvonly"))
    assert offer.sections == (Section("audio", "a", "sendonly"), Section("video", "b", "recvonly"))
    assert offer.sections[0].sends
    assert not offer.sections[0].receives
    assert offer.of_kind("video") == offer.sections[1:]


def test_a_direction_before_the_m_lines_holds_for_all() -> None:
    offer = vet_offer(
        HEAD + "a=recvonly\r\n" + "m=video 9 X 96\r\na=mid:0\r\n" + section("audio", "1", "sendonly")
    )
    assert [s.direction for s in offer.sections] == ["recvonly", "sendonly"]


def test_bare_line_feeds_are_taken() -> None:
    assert vet_offer((HEAD + section("audio", "0")).replace("\r\n", "\n")).sections[0].mid == "0"


def test_candidates_are_taken_out_and_screened() -> None:
    lines = [
        "a=candidate:1 1 udp 1 198.51.100.1 5000 typ host",
        "a=candidate:2 1 udp 1 10.0.0.8 5000 typ host",
        "a=candidate:3 1 tcp 1 198.51.100.1 9 typ host tcptype active",
        "a=end-of-candidates",
    ]
    text = HEAD + section("audio", "0") + "\r\n".join(lines) + "\r\n"
    private = vet_offer(text)
    assert "candidate" not in private.sdp
    assert len(private.candidates) == 2
    assert len(vet_offer(text, allow_private=False).candidates) == 0  # 198.51.100.0/24 is for documents


@pytest.mark.parametrize(
    ("address", "anywhere", "public"),
    [
        ("8.8.8.8", True, True),
        ("2001:4860:4860::8888", True, True),
        ("192.168.1.5", True, False),
        ("127.0.0.1", True, False),
        ("fd00::1", True, False),
        ("169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("224.0.0.1", False, False),
        ("0.0.0.0", False, False),
        ("a1b2.local", False, False),
    ],
)
def test_where_ice_may_send_to(address: str, anywhere: bool, public: bool) -> None:
    line = f"candidate:1 1 udp 2130706431 {address} 50000 typ host"
    assert admits_candidate(line) is anywhere
    assert admits_candidate(line, allow_private=False) is public


@pytest.mark.parametrize(
    "line", ["", "candidate:", "candidate:1 1 udp", "candidate:1 1 udp 1 8.8.8.8 0 typ host"]
)
def test_what_is_no_candidate_is_not_admitted(line: str) -> None:
    assert not admits_candidate(line)


@pytest.mark.parametrize(
    ("role", "sections", "named", "voice"),
    [
        (Role.VOICE, [("audio", "0", "sendonly")], None, "0"),
        (Role.SOURCE, [("video", "0", "sendonly"), ("audio", "1", "sendonly")], None, None),
        (Role.SOURCE, [("audio", "0", "sendonly"), ("audio", "1", "sendonly")], None, "1"),
        (Role.SOURCE, [("audio", "0", "sendonly"), ("audio", "1", "sendonly")], "0", "0"),
        (Role.DUPLEX, [("video", "0", "sendrecv"), ("audio", "1", "sendrecv")], None, "1"),
        (Role.DUPLEX, [("video", "0", "sendrecv"), ("audio", "1", "recvonly")], None, None),
        (Role.VIEWER, [("video", "0", "recvonly"), ("audio", "1", "recvonly")], None, None),
    ],
)
def test_which_track_is_the_voice(
    role: Role, sections: list[tuple[str, str, str]], named: str | None, voice: str | None
) -> None:
    offer = vet_offer(HEAD + "".join(section(*parts) for parts in sections))
    assert choose_voice(role, offer, named) == voice


def test_a_voice_that_is_not_sent_cannot_be_named() -> None:
    with pytest.raises(ApiError, match="unknown_voice_track"):
        choose_voice(Role.DUPLEX, Offer("", (Section("audio", "0", "recvonly"),)), "0")
