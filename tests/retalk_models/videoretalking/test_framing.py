"""Where the face is cut out, and which part of what is drawn there is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retalk_models.face.tracker import FaceTracker
from retalk_models.picture import F32, Box
from retalk_models.videoretalking.framing import MASK_SIDE, BoxTrack, shown_part
from retalk_models.videoretalking.geometry import F64
from retalk_models.videoretalking.landmarks import CHIN, sixty_eight
from tests.retalk_models.videoretalking.clip import pictures

CLIPS = (
    "o1_man_glasses_512.mp4",
    "o2_woman_blue_700_vfr22.mp4",
    "o3_youngman_gestures_1080x1920.mp4",
)


def weight(mask: F32, box: Box, point: F64) -> float:
    """The mask's at a pixel of the frame."""
    x, y = (point - (box.left - 0.5, box.top - 0.5)) * MASK_SIDE / (box.width, box.height)
    return float(mask[int(y), int(x)])


@pytest.mark.parametrize("clip", CLIPS)
def test_a_mouth_opened_wider_than_the_sources_was_cut_off_at_the_chin(clip: str, clips: Path) -> None:
    tracker, boxes = FaceTracker(), BoxTrack()
    seen = 0
    for picture in pictures(clips / "open" / clip, 12, every=8):
        face = tracker.track(picture)
        if face is None:
            continue
        box = boxes(face.points, (picture.padded_width, picture.padded_height), 0.3)
        assert box is not None
        landmarks = sixty_eight(face.points)
        mask = shown_part(landmarks, box)
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not border.any(), "exactly"
        chin = landmarks[CHIN]
        room = box.bottom - chin[1]
        # With less room the mask's soft border reaches the chin.
        if box.bottom < picture.height and room > 0.06 * box.height:
            seen += 1
            assert weight(mask, box, chin) > 0.9
            assert weight(mask, box, chin + np.array([0, 0.6 * room])) > 0
        # The upper face is the person's own.
        eyes = landmarks[36:48]
        assert [weight(mask, box, point) for point in eyes] == [0.0] * 12
        brows = landmarks[17:27]
        assert not mask[: max(1, int((brows[:, 1].max() - box.top) * MASK_SIDE / box.height))].any()
        # The farther corner of a turned head's mouth lies in the soft border.
        assert min(weight(mask, box, point) for point in landmarks[48:68]) > 0.6
    tracker.close()
    assert seen >= 6


def test_a_chin_at_the_pictures_edge_still_has_a_mask_that_ends_inside() -> None:
    angles = np.linspace(np.pi, 0, 17)
    landmarks = np.full((68, 2), 200.0)
    landmarks[:17] = np.stack([200 + 90 * np.cos(angles), 200 + 110 * np.sin(angles)], axis=1)
    landmarks[29] = 200, 190
    for bottom in (310, 306, 330):
        mask = shown_part(landmarks, Box(100, 100, 300, bottom))
        assert mask.max() == 1
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
