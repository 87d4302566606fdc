"""The pose cache of the engine `videoretalking` on clips, without its nets; see videoretalking.py --poses."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from retalk_models.engine import Template
from retalk_models.face.geometry import fit_pose
from retalk_models.face.tracker import FaceTracker
from retalk_models.videoretalking.framing import BoxTrack
from retalk_models.videoretalking.landmarks import sixty_eight
from retalk_models.videoretalking.references import FaceReferences
from retalk_models.videoretalking.scenes import Scene, SceneSource
from retalk_models.videoretalking.stages import FaceReference
from stream.files import VideoFile

_STEP_S = 0.04
_FROM_US = 3_000_000


class NoNets:
    """A maker of references that makes nothing."""

    def own(self, scene: Scene) -> FaceReference:
        return FaceReference(torch.zeros(1), torch.zeros(1))

    canonical = own


def by_clip(clips: list[Path], frames: int = 250) -> None:
    """How often the pose of a clip's frame has a reference, from three seconds on, and how many are made."""
    print("clip                                     frames   hit rate from 3 s   references made in all")
    for clip in clips:
        tracker, boxes, references = FaceTracker(), BoxTrack(), FaceReferences(NoNets(), None)
        made = place = 0
        late = {"reference_hits": 0, "reference_misses": 0}
        with VideoFile(clip) as film:
            for frame in islice(film.once(), 0, frames):
                picture, place = frame.picture, place + 1
                face = tracker.track(picture)
                size = (picture.padded_width, picture.padded_height)
                box = boxes(face.points, size, _STEP_S) if face is not None else None
                if face is None or box is None:
                    continue
                pose = fit_pose(face.points)
                source = SceneSource(picture, sixty_eight(face.points), box, pose, Template.NEUTRAL)
                references.seek(source, _STEP_S)
                counts = references.take_counts()
                made += counts["references_made"]
                if film.time_us(frame.pts) >= _FROM_US:
                    for name in late:
                        late[name] += counts[name]
        tracker.close()
        sought = sum(late.values())
        rate = f"{late['reference_hits'] / sought:.3f}" if sought else "-"
        print(f"{clip.name:40} {place:6} {rate:>19} {made:24}")
