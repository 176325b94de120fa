"""What is done for several people: all are tried, and who failed is said together."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.disk import StoreError
from experiments.settings import Refused


class SomeFailed(ValueError):
    """Some of several identities failed; `paths` are the records of the others."""

    def __init__(self, failed: Mapping[str, str], count: int, paths: list[Path]):
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        super().__init__(f"{len(failed)} of {count} failed: {reasons}")
        self.paths = paths


def for_all(read: Callable[[str], Any], names: Sequence[str]) -> list:
    """Return what `read` returns for each name; raise Refused for all that it refuses."""
    found, refused = [], {}
    for name in names:
        try:
            found.append(read(name))
        except StoreError:
            raise
        except (ValueError, OSError) as error:
            refused.setdefault(str(error), []).append(name)
    if refused:
        raise Refused("; ".join(f"{', '.join(who)}: {why}" for why, who in refused.items()))
    return found
