"""A client that knows nothing of Peerage: a socket to a name and a port.

    ask.py HOST PORT TEXT
"""

import socket
import sys

host, port, text = sys.argv[1:]
with socket.create_connection((host, int(port))) as stream:
    stream.sendall(text.encode() + b"\n")
    print(stream.makefile().readline(), end="")
