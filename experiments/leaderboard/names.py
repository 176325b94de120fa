"""The names of settings and methods that readers see."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.records.record import OWN, Scored

AS_ASSUMED = "as_assumed"
DIGEST_LETTERS = 4  # of a digest beside a name that another row has too


@dataclass(frozen=True, order=True)
class Setting:
    """The adversary and the scorer: all that decides numbers but the method and its budget.

    `details` says in words how the setting differs from the names beside it. `digest` tells it from
    all other settings.
    """

    dataset: str
    customizer: str
    base_model: str
    countermeasure: str
    clean_photos: int
    adversary: str
    surrogate_model: str
    backbone: str
    source: str
    details: str
    digest: str

    @property
    def heading(self) -> str:
        """The data set, the customizer, and what the adversary does besides."""
        adversary = [] if self.adversary == AS_ASSUMED else [self.adversary.replace("_", " ")]
        return ", ".join([self.dataset, self.customizer, *self._treatment, *adversary])

    @property
    def title(self) -> str:
        """One line without the data set and the customizer, which have columns of their own."""
        words = [f"base model {self.base_model}, surrogate {self.surrogate_model}"]
        words += [*self._treatment, self.adversary.replace("_", " ")]
        words += [f"scored with {self.backbone}"]
        words += [self.details] if self.details else []
        words += [f"imported from {self.source}"] if self.source != OWN else []
        return ", ".join(words)

    @property
    def _treatment(self) -> list[str]:
        words = [f"after {self.countermeasure}"] if self.countermeasure != "none" else []
        return words + ([f"{self.clean_photos} of the photos clean"] if self.clean_photos else [])

    @property
    def order(self) -> tuple:
        """The key that sorts the plain setting of a customizer before its other settings."""
        treated, adverse = self.countermeasure != "none", self.adversary != AS_ASSUMED
        return self.dataset, self.customizer, treated, self.clean_photos, adverse, self


def settings_of(records: Sequence[Scored]) -> dict[tuple, Setting]:
    """Return the settings of records by their keys."""
    details = labels((record.setting_key, record.details) for record in records)
    return {key: Setting(*key[:-1], words, key[-1]) for key, words in details.items()}


def labels(names: Iterable[tuple[tuple, str]]) -> dict[tuple, str]:
    """Return one name for each key: of those that come with it the shortest, then the first.

    If two keys that differ in their last entry alone have one name, both get the first letters of
    that entry, a digest, behind it.
    """
    chosen: dict[tuple, str] = {}
    for key, name in names:
        chosen[key] = min(chosen.get(key, name), name, key=lambda text: (len(text), text))
    counts = Counter((key[:-1], name) for key, name in chosen.items())
    return {
        key: name if counts[key[:-1], name] == 1 else f"{name} #{key[-1][:DIGEST_LETTERS]}".lstrip()
        for key, name in chosen.items()
    }
