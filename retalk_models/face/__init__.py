"""The face in the picture: tracking, geometry, warping, compositing and presence."""
