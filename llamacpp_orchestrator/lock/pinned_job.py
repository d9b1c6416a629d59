"""A job with its lock: where the things lie on this machine that the lock names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Ingredient
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.lock.records import Wanted
from llamacpp_orchestrator.merge import RULE
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.util.store import Store


class PinnedJob(msgspec.Struct, frozen=True):
    """A job on this machine with the lock that says exactly what it means; none of the paths need be there yet."""

    context: Context
    lock: Lock

    @property
    def tag(self) -> str:
        """The build of llama.cpp."""
        return self.lock.llama_cpp.tag

    @property
    def store(self) -> Store:
        """The cache."""
        return self.context.store

    @property
    def tree(self) -> Path:
        """The converter tree."""
        return self.store.entry("source", self.lock.llama_cpp.key())

    @property
    def python(self) -> Path:
        """The interpreter that runs the scripts: the built one, or the user's own."""
        if self.lock.environment is None:
            return python_in(self.context.folder(str(self.context.job.environment.path)))
        return self.python_of(self.lock.environment)

    def python_of(self, pin: EnvironmentPin) -> Path:
        """The interpreter of a built environment."""
        return python_in(self.store.entry("environments", pin.pin().digest()) / "venv")

    @property
    def environment_key(self) -> str:
        """The key of the scripts' environment; for a user's own made of its path, which is all that is known of it."""
        own = f"unpinned {self.context.job.environment.path}"
        return self.lock.environment.pin().digest() if self.lock.environment else own

    @property
    def script_env(self) -> tuple[tuple[str, str], ...]:
        """The variables of every converter: its home for models is an empty folder of our cache."""
        return script_env(self.store.folder("home"))

    def home(self, remote: bool = False) -> Path:
        """The folder besides its own that a converter may write to.

        Code that a model brought (`remote`) must not reach what others load.
        """
        folder = self.store.folder("home") / "modules" if remote else self.store.folder("home")
        folder.mkdir(exist_ok=True)
        return folder

    def files(self, wanted: Wanted) -> FilesPin:
        """The locked files of one model or adapter; KeyError when the lock does not know it."""
        return self.lock.files(wanted)

    def view(self, need: Ingredient) -> Path:
        """The folder that a converter is shown of a model or adapter, or of what is merged; its own name goes into the GGUF."""
        return self.merged(need) if need.merged else self.view_of(self.files(need.wanted), need.name)

    def merged(self, need: Ingredient) -> Path:
        """The folder of a merged model."""
        return self.store.entry("merged", self.merged_key(need)) / need.name

    def has_merged(self, need: Ingredient) -> bool:
        """Tell whether a model is merged already."""
        return self.store.has("merged", self.merged_key(need))

    def merged_key(self, need: Ingredient) -> str:
        """The key of a merged model: what is merged, and with what."""
        pins = [self.files(part.wanted) for part in need.parts]
        parts = [[(file.path, file.sha256 or file.oid) for file in pin.files] for pin in pins]
        peft = self.lock.reference if any(pin.by_peft for pin in pins) else None
        tools = [self.environment_key, peft and peft.pin().digest()]
        key = msgspec.json.encode([RULE, need.name, parts, [weight for _, weight in need.merged], *tools])
        return hashlib.sha256(key).hexdigest()[:32]

    def view_of(self, pin: FilesPin, name: str) -> Path:
        """The same for other files than the locked ones, such as a part of them."""
        origin = str(self.context.folder(pin.wanted.source)) if pin.wanted.is_folder else ""
        key = msgspec.json.encode([name, origin, pin.commit, pin.files])
        return self.store.entry("views", hashlib.sha256(key).hexdigest()[:32]) / name
