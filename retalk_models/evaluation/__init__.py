"""How good a dub is, from its file alone: pure measures on landmarks, sound and pictures (docs/evaluation.md)."""
