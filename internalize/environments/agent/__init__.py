"""Tasks that somebody's own agent plays against the endpoint."""
