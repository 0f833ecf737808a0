"""The telecom domain of tau2-bench, played alone: tickets, device and operator tools, exact rewards."""
