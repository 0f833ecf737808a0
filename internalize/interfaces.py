"""The seams between stages. Protocols only: each is implemented by several classes and faked in tests."""
