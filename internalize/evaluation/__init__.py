"""What is computed from records: metrics, intervals and tests, behaviour, diagnostics, signs of collapse, the gate."""
