"""The public door of internalize. Records only; import stages from their modules."""

__version__ = "0.1.0"
