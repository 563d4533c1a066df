"""From a checkpoint of ours to a directory that other software loads. A target is a row of targets.py."""
