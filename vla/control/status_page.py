"""A local web page with the live status of a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vla.control.status import Status
from vla.errors import InputError

PAGE = """<!doctype html><meta charset="utf-8"><title>vla deploy</title>
<style>body{font:15px system-ui;margin:2rem;max-width:60rem}td{padding:.15rem .8rem .15rem 0;vertical-align:top}
.warning{color:#b00020}</style>
<h1>vla deploy</h1><table id="now"></table><h2>Events</h2><table id="events"></table>
<script>
const row = (cells, kind) => {
  const tr = document.createElement("tr"); tr.className = kind || "";
  for (const cell of cells) { const td = document.createElement("td"); td.textContent = cell; tr.append(td); }
  return tr;
};
const refresh = async () => {
  try {
    const status = await (await fetch("status.json")).json();
    const show = (value) => typeof value === "number" ? Math.round(10 * value) / 10 : value ?? "-";
    document.getElementById("now").replaceChildren(
      ...Object.entries(status.now ?? {}).map(([name, value]) => row([name, show(value)])));
    document.getElementById("events").replaceChildren(
      ...status.events.slice(-50).reverse().map((e) =>
        row([e.time.toFixed(1) + " s", e.count > 1 ? e.count + " times" : "", e.what], e.warning ? "warning" : "")));
  } catch { document.getElementById("now").replaceChildren(row(["the run has ended"])); }
};
setInterval(refresh, 1000); refresh();
</script>"""


@contextmanager
def status_page(status: Status, port: int | None) -> Iterator[str | None]:
    """Serves the status on 127.0.0.1 inside the block and yields the address.

    Args:
        status: The status to serve.
        port: The port; 0 lets the system choose. None: nothing is served, and None is yielded.

    Raises:
        InputError: if the port is in use.
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = {"/": (PAGE, "text/html; charset=utf-8"), "/status.json": (None, "application/json")}.get(self.path)
            if page is None:
                self.send_error(404)
                return
            text, kind = page
            body = (json.dumps(status.to_dict()) if text is None else text).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing: the terminal shows the status line."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"status_port={port} cannot be used ({error}): choose another") from error
    thread = threading.Thread(target=server.serve_forever, name="status page", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
