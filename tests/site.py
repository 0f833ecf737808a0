"""A small real website on loopback, with every kind of page that goes wrong, a search API and a reader API."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGES = {
    "/": "<html><head><title>Home</title><script>var secret = 1</script></head><body><h1>Pumps</h1><p>All about pumps."
    "<p>See <a href='/pumps/p7.html#top'>pump seven</a>, <a href='data:x'>nothing</a> or <a href='//[bad'>this</a>.",
    "/pumps/p7.html": "<title>P7</title><p>The pressure of pump seven is 4 bar.</p><a href='../'>home</a>",
    "/long.html": "<title>Long</title>"
    + "".join(f"<p>Paragraph {n} is about nothing in particular, and goes on. {'word ' * 40}</p>" for n in range(60))
    + "<p>The valve of the boiler opens at ninety degrees.</p>"
    + "".join(f"<p>Appendix {n}. {'more ' * 40}</p>" for n in range(60)),
}
MOVED = {
    "/lost": "http://[bad/",
    "/circle": "/circle",
    "/away": "http://10.0.0.1/secret",
    "/file": "file:///etc/passwd",
}
OTHERS = {
    "/huge": (b"<p>start</p>" + b"<p>x</p>" * 20_000, "text/html"),
    "/picture.png": (b"\x89PNG", "image/png"),
    "/data.json": (b'{"pressure": 5}', "application/json"),
    "/latin": ("<p>Gr\u00f6\u00dfe</p>".encode("latin-1"), "text/html; charset=iso-8859-1"),
    "/gbk": ("<meta charset=gb2312><p>镕基".encode("gb18030"), "text/html"),
    "/damaged": ("<p>Größe".encode("latin-1"), "text/html; charset=utf-8"),
    "/links": ("".join(f"<a href=/p{n}>page {n}</a> " for n in range(500)).encode(), "text/html"),
    "/idna": (b"<p>text</p>", "text/html; charset=idna"),
    "/nonsense": (b"<p>text</p>", "text/html; charset=klingon"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path.startswith("/reader/"):
            self._reader(path.removeprefix("/reader/"))
        elif path in PAGES:
            self._send(200, PAGES[path].encode(), "text/html; charset=utf-8")
        elif path in MOVED or path.startswith("/to/"):
            self._send(302, b"", "text/html", Location=MOVED.get(path, path.removeprefix("/to")))
        elif path in OTHERS:
            self._send(200, *OTHERS[path])
        else:
            self._odd(path)

    def _odd(self, path: str) -> None:
        if path == "/slow":
            self.server.gate.wait(20)
            self._send(200, b"late", "text/plain")
        elif path == "/drip":
            self._drip()
        elif path in {"/302", "/300"}:
            self._send(int(path[1:]), b"somewhere", "text/html")
        elif path == "/packed":
            self._send(200, b"no gzip at all", "text/html", **{"Content-Encoding": "gzip"})
        elif path == "/cut":
            self._send(200, b"half", "text/html", **{"Content-Length": "1000"})
            self.close_connection = True
        elif path == "/cookie":
            said = (self.headers.get("Cookie") or "no cookie").encode()
            self._send(200, said, "text/plain", **{"Set-Cookie": "a=b"})
        else:
            self._send(500 if path == "/broken" else 404, b"gone", "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, {**dict(self.headers), "body": body}))
        if self.server.refusals:
            refusal = self.server.refusals.pop(0)
            self._send(refusal, b"{}", "application/json", **{"Retry-After": self.server.retry_after})
            return
        if self.headers.get("X-API-KEY") != "right":
            self._send(403, b"{}", "application/json")
            return
        hits = [{"title": "P7", "link": f"{self.server.address}/pumps/p7.html", "snippet": "A pump."}]
        hits.append({"title": "Set", "link": "https://huggingface.co/datasets/x"})
        found = {} if body["q"] == "nothing" else {"organic": hits}
        answer = b"no JSON" if body["q"] == "malformed" else json.dumps(found).encode()
        self._send(200, answer, "application/json")

    def _reader(self, url: str) -> None:
        if self.headers.get("Authorization") != "Bearer right":
            self._send(401, b"", "text/plain")
        elif url.endswith("/blocked"):
            self._send(403, b"", "text/plain")
        else:
            self._send(200, f"Read for you: {url}".encode(), "text/plain")

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(100):
            if self.server.gate.wait(0.05):
                return
            self.wfile.write(b"x")

    def _send(self, status: int, body: bytes, kind: str, **further: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **further}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.refusals: list[int] = []
        self.retry_after = "0"  # said with each refusal
        self.open: list[socket.socket] = []
        self.gate = threading.Event()  # lets slow pages go at the end
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.address = f"http://{self.host}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.open.append(connection)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests

    def stop(self) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()
        for connection in self.open:  # kept-alive ones would go on being served
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
