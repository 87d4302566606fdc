from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from stream import sample
from stream.errors import InputError


def test_the_sample_presenter_is_the_portrait() -> None:
    portrait = cv2.cvtColor(cv2.imread(str(sample.sample_presenter())), cv2.COLOR_BGR2RGB)
    assert np.array_equal(portrait, astronaut())


def test_without_scikit_image_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"scikit-image is not installed; .*retalk\[demo\]"):
        sample.sample_presenter()
