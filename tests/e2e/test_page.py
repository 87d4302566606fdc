"""The page as people use it: by keyboard, on a phone, refused a camera, on a server that is full or gone."""

from __future__ import annotations

import json
import re
import urllib.request
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Playwright, Response, ViewportSize, expect

from tests.e2e.chromium import Seen, begin_capture, chromium, end_capture, errors_on
from tests.e2e.conftest import Served, serving
from tests.e2e.person import choose, shown_opening, start, stop, wait_live

pytestmark = pytest.mark.e2e

SPEAK_S, HUSH_S = 5.0, 3.0
HUSHED_S = 0.8
"""By then an interruption must have reached the person: one window, playout and the browser's buffer."""

DESK = ViewportSize(width=1280, height=800)
PHONE = ViewportSize(width=360, height=740)
SMALLEST_PHONE = ViewportSize(width=320, height=568)


@pytest.fixture(scope="module")
def browser(driver: Playwright) -> Iterator[Browser]:
    with chromium(driver) as running:
        yield running


@dataclass(frozen=True)
class Spoken:
    """The sample presenter's session, started, interrupted and ended by keyboard alone."""

    seen: Seen
    errors: list[str]
    interrupted_s: float
    outlined: list[str]
    session: dict[str, Any]
    asked_for: list[str]


def tab_to(page: Page, name: str, outlined: list[str]) -> None:
    """Press Tab until `name` has the focus; note every element on the way whose focus can be seen."""
    for _ in range(25):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
              const at = document.activeElement;
              const shown = at.closest("label.choice") ?? at;
              return [at.id || at.value, parseFloat(getComputedStyle(shown).outlineWidth) || 0];
            }"""
        )
        if focus[1] >= 2:
            outlined.append(str(focus[0]))
        if focus[0] == name:
            return
    raise AssertionError(f"Tab never reached {name}")


@pytest.fixture(scope="module")
def spoken(server: Served, browser: Browser) -> Spoken:
    # Closed whatever happens: a page that stays keeps its session, and the next tests find the server full.
    with browser.new_page(viewport=DESK) as page:
        errors, outlined = errors_on(page), list[str]()
        created: list[Response] = []
        asked_for: list[str] = []
        page.on("request", lambda request: asked_for.append(request.url))
        page.on(
            "response", lambda answer: created.append(answer) if answer.request.method == "POST" else None
        )
        page.goto(server.url)
        begin_capture(page, pictures=True)
        expect(page.locator("#start")).to_be_disabled()
        tab_to(page, "consent", outlined)
        page.keyboard.press("Space")
        tab_to(page, "start", outlined)
        page.keyboard.press("Enter")
        wait_live(page)
        assert page.evaluate("document.activeElement.id") == "stop", "the keyboard's place was lost on Start"
        page.wait_for_timeout(SPEAK_S * 1000)
        tab_to(page, "interrupt", outlined)
        interrupted_s = page.evaluate("performance.now() / 1000")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("interrupted")
        page.wait_for_timeout(HUSH_S * 1000)
        seen = end_capture(page)
        assert page.evaluate("document.activeElement.id") == "again", (
            "the keyboard's place was lost on Interrupt"
        )
        page.keyboard.press("Enter")
        expect(page.locator("#interrupt")).to_be_visible()
        expect(page.locator("#fig-voice")).to_have_text("Speaking", timeout=5000)
        session = created[0].json()
        stop(page)
    return Spoken(seen, errors, interrupted_s, outlined, session, asked_for)


def test_sample_presenter_speaks_to_a_keyboard(spoken: Spoken) -> None:
    assert spoken.errors == []
    assert {"consent", "start", "interrupt"} <= set(spoken.outlined), "the focus cannot be seen everywhere"
    speaking = spoken.seen.audio_s < spoken.interrupted_s
    assert spoken.seen.audio_rms[speaking].max() > 0.02, "nothing was heard"


def test_interrupting_silences_sound_and_stills_the_mouth(spoken: Spoken) -> None:
    seen, opening = spoken.seen, shown_opening(spoken.seen)
    began = seen.audio_s[seen.audio_rms > 0.01][0]
    during = (seen.frame_s > began) & (seen.frame_s < spoken.interrupted_s)
    after = seen.frame_s > spoken.interrupted_s + HUSHED_S
    assert after.sum() > 20
    moving, still = np.nanstd(opening[during]), np.nanstd(opening[after])
    assert moving > 0.01, f"the mouth of a speaking presenter hardly moves: {moving:.4f}"
    assert still < 0.25 * moving, f"the mouth goes on after the interruption: {still:.4f} of {moving:.4f}"
    rest = seen.audio_rms[seen.audio_s > spoken.interrupted_s + HUSHED_S]
    assert len(rest) > 100
    assert rest.max() < 0.003, "the voice is still heard after the interruption"


def test_stop_ends_the_session_on_the_server(server: Served, spoken: Spoken) -> None:
    request = urllib.request.Request(
        f"{server.url}/v1/sessions/{spoken.session['id']}",
        headers={"Authorization": f"Bearer {spoken.session['token']}"},
    )
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request, timeout=5)


def test_page_asks_nobody_but_its_own_server(server: Served, spoken: Spoken) -> None:
    assert len(spoken.asked_for) > 5
    assert [url for url in spoken.asked_for if not url.startswith(server.url)] == []


def test_answer_is_changed_in_its_first_bit_rate_only(server: Served, browser: Browser) -> None:
    answer = [
        "v=0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 useinbandfec=1",
        "m=video 9 UDP/TLS/RTP/SAVPF 96 97 98",
        "a=rtpmap:96 VP8/90000",
        "a=rtpmap:97 rtx/90000",
        "a=fmtp:97 apt=96",
        "a=rtpmap:98 H264/90000",
        "a=fmtp:98 packetization-mode=1",
        "",
    ]
    page = browser.new_page()
    page.goto(server.url)
    changed = page.evaluate(
        "async (sdp) => (await import('/js/sdp.js')).withStartBitrate(sdp)", "\r\n".join(answer)
    ).split("\r\n")
    page.close()
    assert [line for line in changed if line not in answer] == [
        "a=fmtp:96 x-google-start-bitrate=1500",
        "a=fmtp:98 packetization-mode=1;x-google-start-bitrate=1500",
    ]
    assert [line for line in answer if line not in changed] == ["a=fmtp:98 packetization-mode=1"]


def test_picture_is_held_for_as_long_as_the_person_chose(server: Served, browser: Browser) -> None:
    page = browser.new_page(viewport=DESK)
    errors = errors_on(page)
    page.goto(server.url)
    choose(page, "sample", "sample")
    policy, hold = page.get_by_label("The dub goes onto"), page.get_by_label("Hold the picture for")
    expect(hold).to_be_hidden()
    policy.select_option("aligned")
    expect(policy).to_have_accessible_description(re.compile("The picture waits"))
    expect(page.locator("#budget")).to_be_hidden()
    hold.fill("1500")
    with page.expect_response(lambda answer: answer.request.method == "POST") as created:
        start(page)
    asked = json.loads(created.value.request.post_data or "{}")
    session = created.value.json()
    assert (asked["policy"], asked["hold_ms"]) == ("aligned", 1500)
    about = asked_of(server, session)
    assert (about["policy"], about["latency_budget_ms"]) == ("aligned", 1500)
    expect(page.locator("#policy")).to_be_disabled()
    expect(page.locator("#summary")).to_contain_text("held for 1500 ms")
    expect(page.locator("#fig-latency")).to_have_text(re.compile(r"^1[45]\d\d$"), timeout=10_000)
    stop(page)
    expect(policy).to_be_enabled()
    hold.fill("9000")
    page.click("#start")
    assert "cannot be held that long" in refusal(page)
    policy.select_option("live")
    with page.expect_response(lambda answer: answer.request.method == "POST") as created:
        start(page)
    assert asked_of(server, created.value.json())["policy"] == "live"
    stop(page)
    assert [error for error in errors if "422" not in error] == []
    page.close()


def asked_of(server: Served, session: dict[str, Any]) -> dict[str, Any]:
    """What GET says of a session."""
    headers = {"Authorization": f"Bearer {session['token']}"}
    request = urllib.request.Request(f"{server.url}{session['urls']['session']}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        about: dict[str, Any] = json.load(answer)
        return about


def test_phone_needs_no_sideways_scrolling(server: Served, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page(viewport=PHONE, is_mobile=True, has_touch=True)

    def too_wide(what: str) -> int:
        page.screenshot(path=tmp_path / f"phone_{what}.png", full_page=True)
        return int(
            page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )

    page.goto(server.url)
    assert too_wide("idle") == 0
    choose(page, "sample", "sample")
    assert too_wide("options") == 0
    start(page)
    page.evaluate("document.getElementById('more').open = true")
    expect(page.locator("#all-figures tr").first).to_be_visible(timeout=5000)
    assert too_wide("live") == 0
    small = page.evaluate(
        """() => [...document.querySelectorAll("button")]
             .filter((b) => b.offsetParent && b.offsetHeight < 32).map((b) => b.id)"""
    )
    assert small == [], "too small for a finger"
    page.close()


def test_choice_of_a_sound_file_fits_the_smallest_phone(
    server: Served, browser: Browser, tmp_path: Path
) -> None:
    page = browser.new_page(viewport=SMALLEST_PHONE, is_mobile=True, has_touch=True)
    page.goto(server.url)
    page.check("input[name=voice][value=file]")
    expect(page.locator("#voice-file")).to_be_visible()
    page.screenshot(path=tmp_path / "smallest_phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == SMALLEST_PHONE["width"]
    assert page.evaluate("document.getElementById('voice-file').getBoundingClientRect().right") <= 320
    page.close()


def refusal(page: Page) -> str:
    expect(page.locator("body")).to_have_attribute("data-state", "failed", timeout=20_000)
    assert page.locator("#alert").get_attribute("role") == "alert"
    expect(page.locator("#start")).to_be_enabled()
    return page.inner_text("#alert")


@pytest.mark.parametrize(
    ("picture", "voice", "says"),
    [
        ("camera", "sample", "may not use the camera.*Allow the camera.*sample presenter"),
        ("sample", "microphone", "may not use the microphone.*Allow the microphone.*sample speech"),
    ],
)
def test_denied_device_says_what_to_do(
    driver: Playwright, server: Served, picture: str, voice: str, says: str
) -> None:
    with chromium(driver, allow=False) as browser:
        page = browser.new_page(viewport=PHONE)
        page.goto(server.url)
        choose(page, picture, voice)
        page.click("#start")
        assert re.search(says, refusal(page), re.DOTALL)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_no_camera_says_what_to_do(driver: Playwright, server: Served) -> None:
    with chromium(driver, devices=False) as browser:
        page = browser.new_page(viewport=DESK)
        page.goto(server.url)
        choose(page, "camera", "sample")
        page.click("#start")
        assert "No camera was found" in refusal(page)


def test_text_file_as_a_voice_is_refused(server: Served, browser: Browser, tmp_path: Path) -> None:
    words = tmp_path / "voice.wav"
    words.write_text("not a sound")
    page = browser.new_page(viewport=DESK)
    page.goto(server.url)
    choose(page, "sample", words)
    page.click("#start")
    assert "not sound that the browser can read" in refusal(page)
    page.close()


def test_voice_of_one_sample_finishes(server: Served, browser: Browser, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "click.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(b"\0\x40")
    page = browser.new_page(viewport=DESK)
    page.goto(server.url)
    choose(page, "sample", tmp_path / "click.wav")
    start(page)
    expect(page.locator("#status")).to_contain_text("The voice has finished", timeout=5000)
    expect(page.locator("#again")).to_be_visible()
    stop(page)
    page.close()


def create(server: Served) -> dict[str, Any] | int:
    """One session over HTTP; the status where it is refused."""
    body = json.dumps({"source": {"file": "sample"}, "consent": True}).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/sessions", body, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            made: dict[str, Any] = json.load(answer)
            return made
    except urllib.error.HTTPError as error:
        return error.code


def test_full_server_says_so(browser: Browser, tmp_path: Path) -> None:
    """Bug: the server was filled by what sessions cost, and had room again by the time the page asked."""
    with serving(tmp_path / "server.log", RETALK_MAX_SESSIONS="1") as server:
        assert isinstance(create(server), dict)
        assert create(server) == 503
        page = browser.new_page(viewport=DESK)
        page.goto(server.url)
        choose(page, "sample", "sample")
        page.click("#start")
        assert "The server is full" in refusal(page)
        page.close()


START_WITHOUT_A_HAND = """
addEventListener("load", () => setTimeout(() => {
  const hear = document.getElementById("hear");
  const seen = new MutationObserver(() => hear.hidden || console.log("asks for a click"));
  seen.observe(hear, { attributes: true });
  document.getElementById("consent").checked = true;
  document.getElementById("setup").dispatchEvent(new Event("change"));
  document.getElementById("setup").requestSubmit();
}, 200));
"""
"""From within the page: whatever a test driver does there counts as the click that this is to do without."""


def test_blocked_sound_waits_for_a_click(driver: Playwright, server: Served) -> None:
    with chromium(driver, sound_without_click=False) as browser:
        page = browser.new_page(viewport=DESK)
        page.add_init_script(START_WITHOUT_A_HAND)
        with page.expect_console_message(lambda said: said.text == "asks for a click", timeout=20_000):
            page.goto(server.url)
        page.click("#hear")
        expect(page.locator("#hear")).to_be_hidden()
        dubbed = "document.getElementById('dubbed')"
        heard = f"!{dubbed}.muted && !{dubbed}.paused"
        page.wait_for_function(heard, timeout=5000)
        stop(page)


def test_server_that_goes_and_comes_back_is_found_again(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page(viewport=DESK)
    with serving(tmp_path / "first.log") as first:
        page.goto(first.url)
        choose(page, "sample", "sample")
        start(page)
        first.process.kill()
        first.process.wait()
        expect(page.locator("#status")).to_contain_text("Connection lost", timeout=10_000)
        expect(page.locator("#dubbed-empty")).to_be_visible()
        expect(page.locator("#dubbed-empty")).to_contain_text("The connection is lost")
        for tile in ("face", "voice", "fps", "latency"):
            expect(page.locator(f"#fig-{tile}")).to_have_text("\N{EN DASH}")
        page.screenshot(path=tmp_path / "lost.png")
    with serving(tmp_path / "second.log", port=int(first.url.rsplit(":", 1)[1])):
        expect(page.locator("body")).to_have_attribute("data-state", "live", timeout=45_000)
        expect(page.locator("#dubbed-empty")).to_be_hidden()
        expect(page.locator("#fig-face")).to_have_text("Tracked", timeout=10_000)
        stop(page)
    expect(page.locator("#dubbed-empty")).to_contain_text("appears here")
    choose(page, "sample", "sample")
    page.click("#start")
    assert "does not answer" in refusal(page)
    page.close()
