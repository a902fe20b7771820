"""`titer up` with real servers and, in the place of Titer's own processes, a small one that answers.

Run as a script by the tests that kill it: `stand_in.py STATE PORT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from api.embedded.process import ChildProcess, Command
from api.embedded.service import EmbeddedService
from api.embedded.up import run_up

ANSWERS = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
DIES = "raise SystemExit('nothing works today')"


class StandIn(EmbeddedService):
    """The embedded service with an api that only says that it is well."""

    script = ANSWERS

    def _children(self) -> list[ChildProcess]:
        port = self.base_url.rpartition(":")[2]
        arguments = (sys.executable, "-I", "-c", self.script, port)
        return [ChildProcess(Command("api", arguments), self.state)]


if __name__ == "__main__":
    sys.exit(run_up(Path(sys.argv[1]), port=int(sys.argv[2]), make_service=StandIn))
