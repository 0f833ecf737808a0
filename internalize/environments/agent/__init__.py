"""Tasks that the user's own agent plays against the endpoint."""
