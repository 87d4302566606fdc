"""Everybody's Talkin' as a streaming engine: factors, audio to expression, target geometry, rendering."""
