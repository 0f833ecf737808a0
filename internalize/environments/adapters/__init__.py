"""Environments of others, one file each, found by a name with a colon, such as `textarena:Mastermind-v0`."""
