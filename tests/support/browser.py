"""A real browser without a window: what it draws of a page, and what it says of it."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No window is narrower than 500 pixels by itself, a frame is.
FRAME = """<!doctype html><iframe style="border: 0; width: {width}px; height: 2400px" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const inner = frames[0].document.documentElement;
  document.documentElement.dataset.widths = [inner.clientWidth, inner.scrollWidth];
}});</script>"""
KEPT = "ORCHESTRATE_SCREENSHOTS"  # the folder that pictures are copied to, for who wants to look at them


class Layout(msgspec.Struct, frozen=True):
    """How wide the frame was and how wide what lies in it came out, in pixels, and what the page put on the console."""

    frame: int
    content: int
    console: str


def program() -> str:
    """The browser; "" where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


def _asked(file: Path, width: int, *options: str) -> subprocess.CompletedProcess[str]:
    argv = (program(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    argv += (f"--user-data-dir={file.parent / 'profile'}", f"--window-size={width},2400", "--enable-logging=stderr", "--v=0")
    return subprocess.run([*argv, *options, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)


def picture(file: Path, width: int, dark: bool) -> Path:
    """A page as it is drawn in a window of a width (PNG)."""
    taken = file.with_name(f"{file.stem}-{width}-{'dark' if dark else 'light'}.png")
    _asked(file, width, f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={taken}")
    if folder := os.environ.get(KEPT):
        shutil.copy(taken, folder)
    return taken


def layout(file: Path, width: int) -> Layout:
    """How a page comes out in a frame of a width."""
    probed = file.with_name(f"{file.stem}-probed.html")
    probed.write_text(FRAME.format(width=width, page=html.escape(file.read_text(encoding="utf-8"))), encoding="utf-8")
    done = _asked(probed, width, "--dump-dom")
    frame, content = re.search(r'data-widths="(\d+),(\d+)"', done.stdout).groups()  # type: ignore[union-attr]
    return Layout(int(frame), int(content), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line))
