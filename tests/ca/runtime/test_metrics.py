"""What the metrics library is kept from loading, and that nobody else misses it."""

from __future__ import annotations

import subprocess
import sys

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ca.runtime.metrics import CONTENT_TYPE

PROGRAM = """
import sys
from ca.runtime import metrics
metrics.counter("seen", "Seen").inc()
assert b"burgee_seen_total 1.0" in metrics.exposition()
print(*(name for name in ("http.server", "socketserver", "urllib.request") if name in sys.modules))
import http.server, socketserver, urllib.request
assert issubclass(http.server.HTTPServer, socketserver.TCPServer)
assert urllib.request.Request("http://example.org/").host == "example.org"
"""


def test_web_servers_are_not_loaded_and_are_there_for_who_imports_them() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_the_content_type_is_the_librarys() -> None:
    assert CONTENT_TYPE == CONTENT_TYPE_PLAIN_0_0_4
