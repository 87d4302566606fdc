"""Time: two unsynchronised inputs in, one synchronised output out. Knows no network and no net."""
