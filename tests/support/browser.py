"""A folder of pages in headless Chromium: served on the loopback interface, looked at, and held to its promises."""

import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps",
)  # fmt: skip
SIZES = {"wide": {"width": 1360, "height": 900}, "narrow": {"width": 390, "height": 844}}


def chromium() -> str | None:
    """The system's browser."""
    return environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def served(folder: Path):
    """The address of a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def opened(size: str = "wide", dark: bool = False):
    """A page of a browser that nobody has used before; `page.problems` fills with what must not happen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play, TemporaryDirectory() as profile:
        context = play.chromium.launch_persistent_context(
            profile,
            executable_path=chromium(),
            headless=True,
            args=list(FLAGS),
            viewport=SIZES[size],
            color_scheme="dark" if dark else "light",
        )
        page = context.pages[0]
        page.problems = []
        watch(page)
        try:
            yield page
        finally:
            context.close()


def watch(page):
    """Errors of the console and of scripts, requests that fail, and requests that leave this machine."""

    def asked(route):
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            page.problems.append(f"{page.url} asks for {route.request.url}")
            route.abort()

    page.route("**/*", asked)
    page.on("pageerror", lambda error: page.problems.append(f"{page.url}: {error}"))
    page.on("console", lambda line: line.type == "error" and page.problems.append(f"{page.url}: {line.text}"))
    page.on("response", lambda got: got.status >= 400 and page.problems.append(f"{got.url}: {got.status}"))


# What a page leads to and shows.
FACTS = """() => ({
    ids: [...document.querySelectorAll("[id], a[name]")].map((one) => one.id || one.name),
    links: [...document.querySelectorAll("a[href]")].map((one) => one.href),
    bare: [...document.images].filter((one) => !(one.getAttribute("alt") || "").trim()).map((one) => one.src),
    broken: [...document.images].filter((one) => one.complete && one.loading !== "lazy" && !one.naturalWidth)
        .map((one) => one.src),
    unnamed: [...document.querySelectorAll("button, input:not([type=hidden]), select")].filter((one) =>
        !(one.textContent.trim() || one.ariaLabel || one.title || one.labels?.length || one.placeholder ||
          one.type === "radio" || one.type === "checkbox")).map((one) => one.outerHTML.slice(0, 120)),
    over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    title: document.title,
})"""


def look(page, address: str) -> dict:
    """Opens an address and says what is there; adds to `page.problems` pictures without a description or without a
    picture, controls without a name, and a page that is wider than its window."""
    page.goto(address, wait_until="load")
    found = page.evaluate(FACTS)
    page.problems += [f"{address}: a picture without alt text: {one}" for one in found["bare"]]
    page.problems += [f"{address}: a picture that is not there: {one}" for one in found["broken"]]
    page.problems += [f"{address}: a control without a name: {one}" for one in found["unnamed"]]
    if found["over"] > 0:
        page.problems.append(f"{address}: {found['over']} pixels wider than the window")
    return found


def dead_links(pages: dict[str, dict], base: str, folder: Path) -> list[str]:
    """Of {address: facts} of all pages of `folder`, links to files or to places that are not there."""
    found = []
    for address, facts in pages.items():
        for link in dict.fromkeys(facts["links"]):
            where, _, place = link.partition("#")
            if not where.startswith(base):
                continue
            path = urlsplit(where).path.lstrip("/")
            target = folder / path
            if target.is_dir():
                where, target = f"{where.rstrip('/')}/index.html", target / "index.html"
            if not target.is_file():
                found.append(f"{address} -> {link}")
            elif place and "=" not in place and where in pages and place not in pages[where]["ids"]:
                found.append(f"{address} -> {link}: no such place")
    return found
