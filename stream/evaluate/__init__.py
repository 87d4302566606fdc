"""`retalk eval`: dubs every clip with every voice of a manifest and measures the files."""
