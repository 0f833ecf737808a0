"""Sources of search results and pages: a folder, the web itself, a search API and a reader API.

    Folder        a folder of .html, .md and .txt files: both searched and read, no network
    HttpReader    pages of public addresses, over HTTP
    ApiSearch     POST {"q", "num"} with X-API-KEY, "organic" in the answer (serper.dev and compatible ones)
    ApiReader     GET address/page with a bearer token, text back (r.jina.ai and compatible ones)

Keys come only from environment variables. A policy must not reach private or loopback addresses unless `allow` names
them, also not through name resolution or redirects. A page that cannot be read is an `Unreadable`, whose text the
policy sees; a host that has stopped answering, or an API that fails, is an InfrastructureError.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from internalize.environments.bounded_html import CostlyPageError, read_bounded
from internalize.environments.site import Site, decoded, plain, unreadable
from internalize.errors import InfrastructureError, UserError
from internalize.inference.retries import Retries, TransientError, retry_after

from .exchange import MOST_BYTES, PACKINGS, Packed, Response, exchanged, is_public
from .pages import Bm25, Page, terms

if TYPE_CHECKING:
    import httpx

RETRIES = Retries(tries=3, longest=30.0, total=120.0)
_OK, _MOVED = 200, frozenset({301, 302, 303, 307, 308})
_REDIRECTS = 5
_AGENT = "internalize (agent research; reads single pages)"


class Unreadable(Exception):  # noqa: N818 - what the policy sees, in words for it
    """A page that cannot be shown; the message says why."""


class Hit(NamedTuple):
    """One search result."""

    title: str
    url: str
    snippet: str = ""


class Search(Protocol):
    """Finds pages."""

    def search(self, query: str, limit: int) -> list[Hit]:
        """The best pages first. Raises InfrastructureError."""
        ...


class Reader(Protocol):
    """Reads pages."""

    def read(self, url: str) -> Page:
        """The page. Raises Unreadable, InfrastructureError."""
        ...


class Folder:
    """The files below a folder; their addresses are relative paths. Raises TaskError for a folder without any."""

    def __init__(self, folder: Path) -> None:
        self._site = Site(folder)
        self._paths = list(self._site.pages)
        found = [terms(f"{path} {page.title} {page.text}", indexed=True) for path, page in self._site.pages.items()]
        self._terms, self._index = [set(words) for words in found], Bm25(found)

    def search(self, query: str, limit: int) -> list[Hit]:
        """By BM25 over whole pages; pages without a word of the query are left out."""
        wanted = set(terms(query))
        paths = [self._paths[place] for place in self._index.ranked(sorted(wanted)) if wanted & self._terms[place]]
        found = [(path, self._site.pages[path]) for path in paths[:limit]]
        return [Hit(page.title or path, path, page.text[:160]) for path, page in found]

    def read(self, url: str) -> Page:
        """The page that a path, or a link to it, leads to."""
        if (path := self._site.resolve(url)) is None:
            raise Unreadable("There is no such page.")
        found = self._site.pages[path]
        return Page(path, found.title, found.text, found.links)


class HttpReader:
    """Public pages. `allow`: hosts (`name` or `name:port`) that may be private; `blocked`: parts of addresses.

    With `robots`, a host's robots.txt is asked before its first page, `allow`ed ones aside.
    """

    def __init__(
        self, allow: Sequence[str] = (), blocked: Sequence[str] = (), seconds: float = 20.0, *, robots: bool = True
    ) -> None:
        self._allow, self._blocked, self._seconds = frozenset(allow), tuple(blocked), seconds
        self._answered: set[str] = set()
        self._robots: dict[str, RobotFileParser] = {}  # by scheme and host; empty rules where none could be had
        self._asks_robots, self._context = robots, _httpx().create_ssl_context()

    def read(self, url: str) -> Page:
        """Follow redirects, each checked like the first address."""
        deadline = time.monotonic() + self._seconds
        for _ in range(_REDIRECTS + 1):
            page, moved = self._insist(url, deadline)
            if page is not None:
                return page
            try:
                url = urljoin(url, moved)
            except ValueError as error:
                raise Unreadable("The page leads to what is no address.") from error
        raise Unreadable("The page leads in circles.")

    def _insist(self, url: str, deadline: float) -> tuple[Page | None, str]:
        """The page or its new address; lost connections are retried."""
        place, retries = self.checked(url), replace(RETRIES, total=max(0.0, deadline - time.monotonic()))
        try:
            return retries.blocking()(self._tried, url, place, deadline)
        except TransientError as error:
            if urlsplit(url).netloc in self._answered:
                raise InfrastructureError(f"web: {urlsplit(url).netloc} does not answer any more") from error
            raise Unreadable("The host does not answer.") from error

    def _tried(self, url: str, place: str, deadline: float) -> tuple[Page | None, str]:
        httpx = _httpx()
        try:
            if not self._robots_allow(url, place, deadline):
                raise Unreadable("The host does not want this page to be read by programs (robots.txt).")
            return self._get(url, place, deadline)
        except Packed as error:
            raise Unreadable("The page is packed in a way that cannot be read.") from error
        except TimeoutError as error:
            raise Unreadable(f"The page did not come within {self._seconds:g} s.") from error
        except httpx.TransportError as error:
            if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
                raise Unreadable(f"The page did not come within {self._seconds:g} s.") from error
            raise TransientError(type(error).__name__) from error

    def checked(self, url: str) -> str:
        """The address to connect to. Raises Unreadable for a forbidden one."""
        parts, host = _parts(url)
        if parts.scheme not in {"http", "https"} or not host:
            raise Unreadable("Only http and https addresses can be read.")
        if any(part.lower() in _plain(parts, host) for part in self._blocked):
            raise Unreadable("This address may not be read.")
        addresses = self._resolved(host, parts)
        if not {host, parts.netloc} & self._allow and not all(map(is_public, addresses)):
            raise Unreadable("This address is private and may not be read.")
        return addresses[0]

    def _resolved(self, host: str, parts: Any) -> list[str]:
        """The addresses of a host. Raises InfrastructureError if name lookup itself fails now."""
        try:
            return RETRIES.blocking()(self._looked_up, host, parts)
        except TransientError as error:
            raise InfrastructureError(f"web: the name {host} cannot be looked up now") from error

    def _looked_up(self, host: str, parts: Any) -> list[str]:
        try:
            found = socket.getaddrinfo(host, parts.port or 80, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN or parts.netloc in self._answered:
                raise TransientError(str(error)) from error
            raise Unreadable("There is no such host.") from error
        except (OSError, ValueError) as error:
            raise Unreadable("There is no such host.") from error
        return [str(entry[4][0]).partition("%")[0] for entry in found]

    def _robots_allow(self, url: str, place: str, deadline: float) -> bool:
        """Whether the host's rules allow it; a host without rules, or that does not answer, allows everything."""
        parts, host = _parts(url)
        if not self._asks_robots or {host, parts.netloc} & self._allow:
            return True
        root = f"{parts.scheme}://{parts.netloc}"
        if root not in self._robots:
            rules = RobotFileParser()
            try:
                found = self._exchanged(f"{root}/robots.txt", place, deadline)
                rules.parse(decoded(found.body).splitlines() if found.status == _OK else ())
            except Packed:
                rules.parse(())
            self._robots[root] = rules
        return self._robots[root].can_fetch(_AGENT, url)

    def _exchanged(self, url: str, place: str, deadline: float) -> Response:
        """One request, to exactly the checked address."""
        httpx, left = _httpx(), max(0.1, deadline - time.monotonic())
        target = httpx.URL(url)
        headers = {"Host": target.netloc.decode("ascii"), "User-Agent": _AGENT, "Accept": "text/html,text/*;q=0.9",
                   "Accept-Encoding": PACKINGS}  # fmt: skip
        pinned = target.copy_with(host=place, userinfo=b"")
        extensions = {"sni_hostname": target.host, "timeout": httpx.Timeout(left).as_dict()}
        request = httpx.Request("GET", pinned, headers=headers, extensions=extensions)
        return exchanged(request, self._context, left, lambda: self._answered.add(urlsplit(url).netloc))

    def _get(self, url: str, place: str, deadline: float) -> tuple[Page | None, str]:
        """The page, or its new address."""
        found = self._exchanged(url, place, deadline)
        if found.status in _MOVED and "location" in found.headers:
            return None, found.headers["location"]
        if not _OK <= found.status < _OK + 100:
            raise Unreadable(f"The page cannot be read (HTTP {found.status}).")
        return _page(url, found), ""


def _parts(url: str) -> tuple[Any, str]:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port  # each raises for what is none
        _httpx().URL(url)
    except (ValueError, _httpx().InvalidURL) as error:
        raise Unreadable("This is no address.") from error
    return parts, host


def _plain(parts: Any, host: str) -> str:
    """An address in a canonical form (case, port, login, path), to compare it with blocked ones."""
    path = normpath("/" + unquote(parts.path).replace("\\", "/").lstrip("/"))
    return f"{parts.scheme}://{host.rstrip('.')}{path}?{unquote(parts.query)}".lower()


def _page(url: str, found: Response) -> Page:
    kind = found.headers.get("content-type", "text/html").partition(";")[0].strip().lower()
    text = decoded(found.body, found.charset)
    if kind in {"text/html", "application/xhtml+xml"}:
        try:
            title, shown, links = read_bounded(text, url)
        except CostlyPageError as error:
            raise Unreadable("The page takes too long to be read.") from error
    elif kind.startswith("text/") or kind.endswith(("json", "xml")):
        title, shown, links = "", plain(text), ()
    else:
        raise Unreadable(f"This is no page of text ({kind}).")
    return Page(url, title, shown, links, found.cut, unreadable(text, found.body))


class _Api:
    """One API with a key. A failure is retried, then raises InfrastructureError; a refused key raises UserError."""

    refusals = frozenset({401, 402})

    def __init__(self, address: str, key_env: str, seconds: float) -> None:
        self._key = os.environ.get(key_env, "")
        if not self._key:
            raise UserError(f"web: the environment variable {key_env} is not set; it holds the key of {address}")
        self._address, self._key_env = address.rstrip("/"), key_env
        self._client = _httpx().Client(timeout=seconds, headers={"User-Agent": _AGENT})

    def _asked(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            return RETRIES.blocking()(self._tried, send)
        except TransientError as error:
            raise InfrastructureError(f"web: {self._address} fails ({error})") from error

    def _tried(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            response = send()
        except _httpx().TransportError as error:
            raise TransientError(type(error).__name__) from error
        said = f"HTTP {response.status_code}"
        if response.status_code in self.refusals:
            raise UserError(f"web: {self._address} refuses the key in {self._key_env} ({said})")
        if response.status_code == 429 or response.status_code >= 500:
            raise TransientError(said, retry_after(response.headers.get("retry-after")))
        return response

    def close(self) -> None:
        """End open connections."""
        self._client.close()


class ApiSearch(_Api):
    """Search by POST."""

    refusals = frozenset({401, 402, 403})

    def search(self, query: str, limit: int) -> list[Hit]:
        """The organic results."""
        body, headers = {"q": query, "num": limit}, {"X-API-KEY": self._key}
        response = self._asked(lambda: self._client.post(f"{self._address}/search", json=body, headers=headers))
        try:
            found = response.raise_for_status().json().get("organic", [])
            return [Hit(str(h["title"]), str(h["link"]), str(h.get("snippet", ""))) for h in found[:limit]]
        except (_httpx().HTTPStatusError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"web: {self._address} gave no list of results (HTTP {response.status_code})"
            raise InfrastructureError(said) from error


class ApiReader(_Api):
    """Pages through a reader; `guard` checks each address first."""

    def __init__(self, address: str, key_env: str, seconds: float, guard: HttpReader) -> None:
        super().__init__(address, key_env, seconds)
        self._guard = guard

    def read(self, url: str) -> Page:
        """The reader's text of the page. A 4xx is about that page."""
        self._guard.checked(url)
        target, headers = f"{self._address}/{quote(url, safe=':/?&=%#')}", {"Authorization": f"Bearer {self._key}"}
        response = self._asked(lambda: self._client.get(target, headers=headers))
        if response.is_error:
            raise Unreadable(f"The page cannot be read (HTTP {response.status_code}).")
        text = response.text
        return Page(url, "", plain(text[:MOST_BYTES]), cut=len(text) > MOST_BYTES)


def _httpx() -> Any:
    try:
        import httpx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("the environment 'web' needs an extra: pip install 'internalize[web]'") from error
    return httpx
