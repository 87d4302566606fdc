"""Views of the person that another view is drawn from: lips shut and lips open, by pose."""

from __future__ import annotations

SHUT_BELOW = 0.025
"""Aperture (canonical units) under which lips count as shut."""
