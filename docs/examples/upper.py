"""A server of a protocol of its own: answers each line in capitals.

    upper.py PORT
"""

import socketserver
import sys


class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


server = socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Upper)
print("ready", flush=True)
server.serve_forever()
