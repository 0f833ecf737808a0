"""Engines: who samples. `local` (in process), `scripted` (a public fake)."""
