"""The middle of a pipeline: makes figures of lines, and posts them to the next step by its name.

    analyze.py PORT NEXT
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen


class Analyze(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        words = text.split()
        figures = f"lines {len(text.splitlines())}, words {len(words)}, longest word `{max(words, key=len)}`"
        with urlopen(sys.argv[2], data=figures.encode()) as answer:
            said = answer.read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said)


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Analyze)
print("ready", flush=True)
server.serve_forever()
