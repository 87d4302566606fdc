"""Pixels: (frames, voice) -> frames. Knows no session and no clock."""
