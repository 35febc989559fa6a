"""A server of the Model Context Protocol, as its SDK's own documentation writes one: a tool that adds two numbers.

    server.py NAME      NAME is the host name that its peers call it by

A server of the SDK that listens on loopback refuses a Host header that is not a name of loopback, against pages in a
browser that ask by a name of their own. Its peers call it by their name for it, so it is told that name.
"""

import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

server = MCPServer("calculator")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


security = TransportSecuritySettings(allowed_hosts=[sys.argv[1]])
server.run(transport="streamable-http", host="127.0.0.1", port=8000, transport_security=security)
