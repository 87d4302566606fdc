"""How good a dub is, measured on landmarks, sound and pictures (docs/evaluation.md)."""
