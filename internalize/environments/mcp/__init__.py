"""Tasks that are solved with the tools of a Model Context Protocol server."""
