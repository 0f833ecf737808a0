"""Logs, pools and trajectories of other tools, one file a format."""
