"""Computes metrics, intervals, tests, warning signs and the decision of the gate from stored records."""
