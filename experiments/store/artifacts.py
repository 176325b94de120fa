"""Artifacts on disk under a key of their inputs: made once, checked on reading, shown when whole.

An artifact is the folder `<root>/<stage>/<key>/<unit>`; its `manifest.json` is written last.
Work in progress lies beside it in `.<unit>.work`. The folder `files` in there becomes the artifact.
The folder `checkpoint` survives a kill, so that the same call goes on where it stopped.
"""

import errno
import hashlib
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from urllib.parse import quote

from filelock import FileLock, Timeout

from experiments.store.disk import atomic_write, sync, writing
from experiments.store.provenance import digest_of_file, versions

log = logging.getLogger(__name__)

FORMAT = 2  # raised when the form of inputs changes: an old store is then made anew
MANIFEST = "manifest.json"
HOLDER = "holder"  # tells those who wait which process makes the artifact, and since when
SMALL = 1 << 20  # bytes of a file, such as a photo or scores, that each process reads to trust it
WAIT = 60  # seconds after which a waiting process says again for whom it waits
# What the system says where a file is gone, replaced by a folder or a link to itself. Other errors,
# such as those of a network, are no reason to set an artifact aside.
HARM = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
Build = Callable[[Path, Path], Mapping | None]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: dict

    @property
    def files(self) -> list[Path]:
        """The files that the manifest lists, sorted by name; others in the folder do not count."""
        return [self.path / name for name in sorted(self.manifest["files"])]

    @property
    def digest(self) -> str:
        """SHA-256 of the files' names and contents, hexadecimal: an input of later stages."""
        return _sha256({name: entry["sha256"] for name, entry in self.manifest["files"].items()})


def key_of(stage: str, version: int, inputs: Mapping) -> str:
    """Return the key of an artifact: 16 hexadecimal digits, equal for equal inputs.

    The order of settings does not matter, nor whether a number is 8 or 8.0. Raises ValueError for
    values that JSON cannot hold exactly: NaN, infinity, objects.
    """
    return _sha256([FORMAT, stage, version, _canonical(inputs, stage)])[:16]


def digest_of(kind: str, version: int, content: Mapping) -> str:
    """Return 16 hexadecimal digits for what is no artifact, such as a record's setting.

    Equality is that of `key_of`, but the digits do not depend on the format of the store.
    """
    return _sha256([kind, version, _canonical(content, kind)])[:16]


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    """Return a file name for any identity: one to one, no separators, no leading dot."""
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
    """The artifacts under `root`.

    Artifacts of the stages in `force` are made anew, except those in `renewed`. A forced artifact
    joins `renewed`, so stores that share this set make it anew once.
    """

    root: Path
    force: Collection[str] = ()
    renewed: set[Path] = field(default_factory=set, repr=False)

    def makes_anew(self, stage: str, key: str, unit: str) -> bool:
        """Return whether `make` would build this artifact even if it is there."""
        return stage in self.force and self._path(stage, key, unit) not in self.renewed

    def find(self, stage: str, key: str, unit: str) -> Artifact | None:
        """Return the finished artifact or None; a damaged one is set aside with a warning."""
        final = self._path(stage, key, unit)
        artifact, damage = verified(final)
        if not damage:
            return artifact
        with writing(self.root), _locked(final):
            return _sound(final)

    def make(self, stage: str, key: str, unit: str, build: Build, *, inputs: Mapping) -> Artifact:
        """Return the finished artifact, built first if there is none.

        `build(folder, checkpoint)` writes the files into the empty `folder` and returns facts for
        the manifest. After a kill it finds in `checkpoint` again what it left there. A process that
        wants an artifact which another one makes waits for it. Raises StoreError if the disk is
        full or the folder is not writable; other errors of `build` pass through.
        """
        final = self._path(stage, key, unit)
        work = _work(final)
        forced = self.makes_anew(stage, key, unit)
        if not forced and not work.exists() and (artifact := self.find(stage, key, unit)):
            return artifact
        with writing(self.root), _locked(final):
            artifact = _sound(final)
            forced_before = work / "forced"
            if forced and not forced_before.exists():  # the work is that of an unforced call
                shutil.rmtree(work, ignore_errors=True)
                atomic_write(forced_before, "")
            if forced or not artifact:
                place = {"stage": stage, "key": key, "unit": unit}
                artifact = _made(final, build, place | {"inputs": _canonical(inputs, stage)})
                self.renewed.add(final)
            shutil.rmtree(work, ignore_errors=True)
            return artifact

    def _path(self, stage: str, key: str, unit: str) -> Path:
        return Path(self.root) / stage / key / safe_name(unit)


def verified(folder: Path, place: Path | None = None) -> tuple[Artifact | None, str]:
    """Return the intact artifact in `folder`, or None and a word on its damage.

    Where nothing is there, the word is empty. `place` is where the artifact belongs if not there.
    """
    place = place or folder
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.pop("seal", None) != _sha256(manifest):
            return None, f"the content of {MANIFEST} has changed"
        parts = (manifest["stage"], manifest["key"], safe_name(manifest["unit"]))
        if parts != place.parts[-3:]:
            return None, f"its manifest is that of {'/'.join(parts)}"
        for name, entry in manifest["files"].items():
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                return None, f"{name} is outside its folder"
            status = (folder / name).stat()
            if status.st_size != entry["size"]:
                return None, f"{name} has {status.st_size} bytes instead of {entry['size']}"
            # Weights that kept size and time are believed; reading gigabytes takes minutes.
            doubtful = status.st_size <= SMALL or status.st_mtime_ns != entry["mtime_ns"]
            if doubtful and digest_of_file(folder / name) != entry["sha256"]:
                return None, f"the content of {name} has changed"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{MANIFEST} is not readable"
    except OSError as error:
        if error.errno not in HARM:
            raise
        there = os.path.lexists(folder)
        return None, f"{Path(error.filename).name}: {error.strerror}" if there else ""
    return Artifact(folder, manifest), ""


def _sound(final: Path) -> Artifact | None:
    """Under the lock: the intact artifact; a damaged one is moved out of the way."""
    artifact, damage = verified(final)
    if damage:
        n = 1
        while os.path.lexists(aside := final.with_name(f"{final.name}.damaged-{n}")):
            n += 1
        final.rename(aside)
        log.warning("%s is damaged (%s): set aside as %s", final, damage, aside.name)
    return artifact


def _made(final: Path, build: Build, origin: dict) -> Artifact:
    """Under the lock: build, seal, publish. Each step may be the last before a kill."""
    work = _work(final)
    files, checkpoint, replaced = work / "files", work / "checkpoint", work / "replaced"
    sealed, _ = verified(files, final)
    if not sealed:  # else a kill came before the last rename
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(parents=True)
        checkpoint.mkdir(exist_ok=True)
        since = f"{datetime.now():%Y-%m-%d %H:%M}"
        (work / HOLDER).write_text(f"process {os.getpid()} on {platform.node()} since {since}")
        facts = dict(build(files, checkpoint) or {})
        _seal(files, origin | {"facts": facts})
    shutil.rmtree(checkpoint, ignore_errors=True)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    files.rename(final)
    sync(final.parent)
    return verified(final)[0]


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
    now = datetime.now(UTC).isoformat()
    manifest |= {"files": entries, "versions": versions(), "created_at": now}
    manifest |= {"seal": _sha256(manifest)}
    atomic_write(files / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _work(final: Path) -> Path:
    return final.with_name(f".{final.name}.work")


def _locked(final: Path) -> AbstractContextManager:
    """Acquire the lock of a place; tell at once and every minute for whom this process waits."""
    place = final.with_name(f".{final.name}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    lock, patience = FileLock(place, poll_interval=0.2), 0
    while True:
        for path in (place, _work(final)):  # a link is none of ours: its target is not touched
            if path.is_symlink():
                path.unlink(missing_ok=True)
        try:
            return lock.acquire(timeout=patience)
        except Timeout:
            holder = _work(final) / HOLDER
            process = holder.read_text() if holder.exists() else "another process"
            log.info("waiting for %s, which is making %s", process, final)
            patience = WAIT
