"""What pip's and uv's own config files say of the places of packages, as those programs read them."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.errors import JobError


def of_uv(environ: Mapping[str, str], system: str) -> dict[str, str]:
    """The places of packages in uv's own config file, by pip's names for them; JobError names what is wrong where."""
    for file in uv_config_files(system, environ, Path.home()):
        try:
            return uv_options(file.read_text(encoding="utf-8-sig"), str(file))
        except (OSError, UnicodeDecodeError):
            continue
    return {}


def uv_config_files(system: str, environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Where uv looks for its options on a system, the first word first (its documentation, Configuration files)."""
    if chosen := environ.get("UV_CONFIG_FILE"):
        return (Path(chosen),)
    if environ.get("UV_NO_CONFIG"):
        return ()
    if system == "windows":
        folders = [environ[name] for name in ("APPDATA", "PROGRAMDATA") if environ.get(name)]
    else:
        everyone = [folder for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if folder]
        folders = [environ.get("XDG_CONFIG_HOME") or str(home / ".config"), *everyone, "/etc"]
    return tuple(Path(folder, "uv", "uv.toml") for folder in folders)


def uv_options(text: str, where: str) -> dict[str, str]:
    """The places of packages in the text of a uv.toml, by pip's names for them; [pip] and `explicit` indexes are not for us."""
    if sys.version_info >= (3, 11):
        import tomllib  # here, for few have such a file
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{where}: not a uv config file: {error}", "correct it, or set UV_NO_CONFIG=1") from error
    indexes = [index for index in _list(data.get("index")) if isinstance(index, dict) and not index.get("explicit")]
    default = [str(index.get("url", "")) for index in indexes if index.get("default")]
    others = [str(index.get("url", "")) for index in indexes if not index.get("default")]
    options = {
        "index-url": default or _list(data.get("index-url")),
        "extra-index-url": others + _list(data.get("extra-index-url")),
        "find-links": _list(data.get("find-links")),
    }
    return {name: " ".join(map(str, values)) for name, values in options.items() if values}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def of_pip(environ: Mapping[str, str], system: str) -> dict[str, str]:
    """The options in pip's own config files; JobError names a file that is none."""
    texts = {}
    for file in pip_config_files(system, environ, Path.home(), Path(sys.prefix)):
        try:
            texts[str(file)] = file.read_text(encoding="utf-8-sig", errors="replace")
        except OSError:
            continue
    return pip_options(texts)


def pip_config_files(system: str, environ: Mapping[str, str], home: Path, prefix: Path) -> tuple[Path, ...]:
    """Where pip looks for its options on a system, the last word last (pip's `_internal/configuration.py`)."""
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return ()
    if system == "windows":
        everyone, own = (
            [Path(folder, "pip", "pip.ini")] if (folder := environ.get(name)) else [] for name in ("PROGRAMDATA", "APPDATA")
        )
        users = [home / "pip" / "pip.ini", *own]
        return (*everyone, *([] if chosen else users), prefix / "pip.ini", *([Path(chosen)] if chosen else []))
    own_folder = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    if system == "macos":
        support = Path("Library", "Application Support", "pip", "pip.conf")
        everyone = [Path("/", support)]
        modern = home / support if (home / support).parent.is_dir() else own_folder / "pip" / "pip.conf"
    else:
        folders = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        everyone = [*(Path(folder, "pip", "pip.conf") for folder in folders if folder), Path("/etc/pip.conf")]
        modern = own_folder / "pip" / "pip.conf"
    users = [home / ".pip" / "pip.conf", modern]
    return (*everyone, *([] if chosen else users), prefix / "pip.conf", *([Path(chosen)] if chosen else []))


def pip_options(texts: Mapping[str, str]) -> dict[str, str]:
    """The options in the text of pip's config files (file → text, the last word last); [install] wins over [global]."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for file, text in texts.items():
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text, file)
        except configparser.Error as error:
            # Not the line itself: an index in it may have a login.
            line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", ())), 0)
            said = f"{file}: not a pip config file" + (f" (line {line})" if line else "")
            raise JobError(said, "correct it, or set PIP_CONFIG_FILE") from error
        for section in found.keys() & set(parser.sections()):
            found[section] |= {name.lower().replace("_", "-").removeprefix("--"): value for name, value in parser.items(section)}
    return found["global"] | found["install"]
