"""Everything between messages and sampled tokens: rendering, engines, endpoints and their clients, tool formats."""
