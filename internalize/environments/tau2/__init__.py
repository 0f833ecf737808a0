"""The telecom domain of tau2-bench, without a simulated user: tickets, device and operator tools, exact rewards."""
