"""A server with one tool."""

from mcp.server import MCPServer

server = MCPServer("stock")


@server.tool()
def count(part: str) -> int:
    """How many of a part are in stock."""
    return 7 * len(part)


server.run("stdio")
