"""The end of a pipeline: writes what is posted to it into report.txt.

    report.py PORT
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Report(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        with open("report.txt", "wb") as report:
            report.write(text + b"\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reporter has it\n")


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Report)
print("ready", flush=True)
server.serve_forever()
