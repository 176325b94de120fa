"""Content-keyed artifacts on disk: made once, verified on reading, never half-visible.

An artifact is the folder `<root>/<stage>/<key>/<unit>` with a `manifest.json` that was written
last. Work in progress lives beside it in `.<unit>.work`: `files` becomes the artifact, and
`checkpoint` survives a kill, so that the same call goes on where it stopped.
"""

import errno
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from experiments.store.disk import atomic_write, sync, writing
from experiments.store.provenance import digest_of_file, versions

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SMALL = 1 << 20  # bytes of a file, such as a photo or scores, that a process reads to trust it
Build = Callable[[Path, Path], Mapping | None]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and what the manifest says of it."""

    path: Path
    manifest: dict

    @property
    def files(self) -> list[Path]:
        """The artifact's files, sorted by name; what else lies in the folder does not count."""
        return [self.path / name for name in sorted(self.manifest["files"])]

    @property
    def digest(self) -> str:
        """SHA-256 of the files' names and contents, to feed the keys of later stages."""
        content = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def key_of(stage: str, version: int, inputs: Mapping) -> str:
    """16 hexadecimal digits that are equal for equal inputs, whatever their order, 8 or 8.0.

    Raises ValueError for values that JSON cannot hold exactly: NaN, infinity, objects.
    """
    text = json.dumps([stage, version, _canonical(inputs, stage)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(value: object, where: str) -> object:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _canonical(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{where}: {value!r} cannot be part of a key; give a finite number or text")


def safe_name(name: str) -> str:
    """A file name for any identity: one to one, no separators, no leading dot."""
    if not name:
        raise ValueError("an identity has an empty name")
    quoted = quote(name, safe=" ", errors="surrogateescape")
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    if len(quoted) > 200:
        quoted = f"{quoted[:160]}%-{hashlib.sha256(quoted.encode()).hexdigest()[:32]}"
    return quoted


@dataclass
class Store:
    """The artifacts under `root`. Stages named in `force` are made anew, but for those in
    `renewed`, which gains them: stores that share it make each anew once.
    """

    root: Path
    force: Collection[str] = ()
    renewed: set[Path] = field(default_factory=set, repr=False)

    def makes_anew(self, stage: str, key: str, unit: str) -> bool:
        """Whether `make` would build this artifact even if it is there."""
        return stage in self.force and self._path(stage, key, unit) not in self.renewed

    def find(self, stage: str, key: str, unit: str) -> Artifact | None:
        """The finished artifact or None; a damaged one is set aside with a warning."""
        final = self._path(stage, key, unit)
        artifact, damage = _read(final)
        if not damage:
            return artifact
        with writing(self.root), _locked(final):
            return _sound(final)

    def make(self, stage: str, key: str, unit: str, build: Build, *, inputs: Mapping) -> Artifact:
        """The finished artifact, built first if there is none.

        `build(folder, checkpoint)` writes the files into the empty `folder` and returns facts for
        the manifest; what it keeps in `checkpoint` it finds there again after a kill. Another
        process that wants the same artifact waits. Raises StoreError if the disk is full or the
        folder not writable; what `build` raises otherwise passes through.
        """
        final = self._path(stage, key, unit)
        forced = self.makes_anew(stage, key, unit)
        settled = not forced and not _work(final).exists()
        if settled and (artifact := self.find(stage, key, unit)):
            return artifact
        with writing(self.root), _locked(final):
            artifact = _sound(final)
            if forced:
                _discard_older_work(final, artifact)
            if forced or not artifact:
                place = {"stage": stage, "key": key, "unit": unit}
                artifact = _made(final, build, place | {"inputs": _canonical(inputs, stage)})
                self.renewed.add(final)
            shutil.rmtree(_work(final), ignore_errors=True)
            return artifact

    def _path(self, stage: str, key: str, unit: str) -> Path:
        return Path(self.root) / stage / key / safe_name(unit)


def _read(final: Path, folder: Path | None = None) -> tuple[Artifact | None, str]:
    """The artifact of place `final` as it lies in `folder`, and what is wrong with it if any."""
    folder = folder or final
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        seal = manifest.pop("seal", None)
        if seal and seal != _seal_of(manifest):  # a former version set none
            return None, f"the content of {MANIFEST} has changed"
        place = [manifest["stage"], manifest["key"], safe_name(manifest["unit"])]
        if place != [final.parent.parent.name, final.parent.name, final.name]:
            return None, f"its manifest is that of {'/'.join(place)}"
        for name, entry in manifest["files"].items():
            status = (folder / name).stat()
            if status.st_size != entry["size"]:
                return None, f"{name} has {status.st_size} bytes instead of {entry['size']}"
            # Weights that kept size and time are believed; reading gigabytes takes minutes.
            doubtful = status.st_size <= SMALL or status.st_mtime_ns != entry["mtime_ns"]
            if doubtful and digest_of_file(folder / name) != entry["sha256"]:
                return None, f"the content of {name} has changed"
    except FileNotFoundError as error:
        there = folder.exists() or folder.is_symlink()
        return None, f"{Path(error.filename).name} is missing" if there else ""
    except (NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None, f"{MANIFEST} is not readable"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return None, f"{Path(error.filename).name} is a link to itself"
    return Artifact(folder, manifest), ""


def _sound(final: Path) -> Artifact | None:
    """Under the lock: the intact artifact; a damaged one is moved out of the way."""
    replaced = _work(final) / "replaced"
    if replaced.exists() and not final.exists():
        replaced.rename(final)  # a kill came between the two renames of a replacement
    artifact, damage = _read(final)
    if damage:
        n = 1
        while (aside := final.with_name(f"{final.name}.damaged-{n}")).exists():
            n += 1
        final.rename(aside)
        log.warning("%s is damaged (%s): set aside as %s", final, damage, aside.name)
    return artifact


def _made(final: Path, build: Build, origin: dict) -> Artifact:
    """Under the lock: build, seal, publish. Each step may be the last before a kill."""
    work = _work(final)
    files, checkpoint = work / "files", work / "checkpoint"
    sealed, _ = _read(final, files)
    if not sealed:
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(parents=True)
        checkpoint.mkdir(exist_ok=True)
        facts = dict(build(files, checkpoint) or {})
        _seal(files, origin | {"facts": facts})
    shutil.rmtree(checkpoint, ignore_errors=True)
    if final.exists():
        final.rename(work / "replaced")
    files.rename(final)
    sync(final.parent)
    return _read(final)[0]


def _seal(files: Path, manifest: dict) -> None:
    """Flush every file to the disk, then write the manifest that declares them complete."""
    entries = {}
    for path in sorted(files.rglob("*")):
        sync(path)
        if path.is_file():
            status = path.stat()
            entries[path.relative_to(files).as_posix()] = {
                "sha256": digest_of_file(path),
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
    manifest |= {"files": entries, "versions": versions(), "created_at": _now()}
    manifest |= {"seal": _seal_of(manifest)}
    atomic_write(files / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _seal_of(manifest: Mapping) -> str:
    """SHA-256 of what a manifest says, whatever its layout."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _discard_older_work(final: Path, artifact: Artifact | None) -> None:
    """Keep only what an earlier forced call did towards replacing this very artifact."""
    replaces = artifact.manifest["created_at"] if artifact else "nothing"
    work, marker = _work(final), _work(final) / "replaces"
    if not marker.exists() or marker.read_text() != replaces:
        shutil.rmtree(work, ignore_errors=True)
        atomic_write(marker, replaces)


def _work(final: Path) -> Path:
    return final.with_name(f".{final.name}.work")


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(final.with_name(f".{final.name}.lock"), poll_interval=0.2)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that is making %s", final)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _now() -> str:
    return datetime.now(UTC).isoformat()
