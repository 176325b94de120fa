"""Records: one for each identity and configuration, with its origin, settings and scores."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validator
from pydantic.functional_validators import AfterValidator

from eval.metrics import METRICS

SCHEMA_VERSION = 2
OWN = "this project"
BESIDE_ISM = ("fdfr", "ism_failures_as_0")
CONFIGURED = ("attack", "customizer", "dataset", "gallery", "precision")


class RecordError(ValueError):
    """A file holds no record of this schema; the message names the file and the key."""


def _printable(text: str) -> str:
    if not text.isprintable():  # figures and pages show names
        raise ValueError("expected printable text")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0)]
Number = int | float
Seconds = Annotated[int | float, Field(ge=0, lt=1e9)]
Budget = Annotated[int | float, Field(ge=0, le=255)]  # grey levels; 0: nothing is protected


class Part(BaseModel):
    """A part of a record; its kinds are strict, so that no text becomes a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Values(Part):
    """Scores by the names of their metrics, each in its metric's range.

    Metrics that this project does not know, such as those of pyiqa, are numbers or null.
    """

    model_config = ConfigDict(extra="allow")

    @validator(mode="after")
    def _in_range(self) -> "Values":
        for metric, value in self.numbers.items():
            low, high = METRICS.get(metric, {}).get("range", (None, None))
            low, high = -math.inf if low is None else low, math.inf if high is None else high
            is_number = isinstance(value, Number) and not isinstance(value, bool)
            is_finite = is_number and math.isfinite(value)
            # a record is written with 6 digits: the last bits of a sum may lie outside
            if value is not None and not (is_finite and low - 1e-6 <= value <= high + 1e-6):
                bounds = f"from {low:g} to {high:g}, or null"
                raise ValueError(f"{metric} is {value!r}, expected a number {bounds}")
        return self

    @property
    def numbers(self) -> dict[str, Number | None]:
        """The scores, without tables of prompts and images."""
        return {name: value for name, value in self if name not in ("prompts", "images")}


class ArmScores(Values):
    """The scores of one victim's gallery, of each prompt, and of each image."""

    ism: Number | None = None
    ism_failures_as_0: Number | None = None
    fdfr: Number | None = None
    identity_retention: Number | None = None
    brisque: Number | None = None
    ser_fiq: Number | None = None
    prompts: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []


class Perceptibility(Values):
    """How visible the protection is, over all photos and of each."""

    linf: Number | None = None
    psnr: Number | None = None
    ssim: Number | None = None
    images: list[dict[str, Any]] = []


class Arms(Part):
    protected: ArmScores
    unprotected: ArmScores | None = None


class Scorer(Part):
    model_config = ConfigDict(extra="allow")
    backbone: Name


class Row(Part):
    """The digests of all that decides the numbers, of the setting and of the method."""

    setting: Digest
    method: Digest


class Scored(Part):
    """The place of scores on the leaderboard, and the scores.

    `attack` is the choice of the command line and `method` tells it from its variants. `details`
    says how the setting differs from the names beside it.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    name: Name
    dataset: Name
    identity: Name
    attack: Name
    method: Annotated[str, StringConstraints(min_length=1), AfterValidator(_printable)]
    eps: Budget
    surrogate_model: Name
    base_model: Name
    countermeasure: Name
    clean_photos: Count
    adversary: Name
    customizer: Name
    details: Annotated[str, AfterValidator(_printable)] = ""
    row: Row
    seed: Count
    scorer: Scorer
    scores: Arms
    perceptibility: Perceptibility

    @validator(mode="after")
    def _faces_counted(self) -> "Scored":
        scores = self.scores.protected.model_fields_set
        if not scores:
            raise ValueError("scores.protected is empty, expected a score")
        if "ism" in scores and (missing := [key for key in BESIDE_ISM if key not in scores]):
            raise ValueError(
                f"scores.protected.ism stands without {' and '.join(missing)}, which say what "
                "became of images without a face"
            )
        return self

    @property
    def source(self) -> str:
        """The publication that the scores come from."""
        return OWN

    @property
    def setting_key(self) -> tuple:
        """All that records of one setting share; the last entry is its digest."""
        names = (self.dataset, self.customizer, self.base_model, self.countermeasure)
        names += (self.clean_photos, self.adversary, self.surrogate_model)
        return (*names, self.scorer.backbone, self.source, self.row.setting)

    @property
    def row_key(self) -> tuple:
        """All that records of one row of the leaderboard share; the last entry is a digest.

        Two attacks of conf/ that come to the same method at a budget have a row each.
        """
        return (*self.setting_key, float(self.eps), self.attack, self.row.method)


class Origin(Part):
    source: Name
    file: str
    line: Count


class Imported(Scored):
    """Scores that others measured, in any of the metrics."""

    imported: Origin

    @property
    def source(self) -> str:
        return self.imported.source


class Duration(Part):
    protect: Seconds | None
    customize: Seconds | None
    evaluate: Seconds | None


class Processors(Part):
    """The processors that protected the photos and made the victim and gallery of each arm."""

    protect: Name
    protected: Name
    unprotected: Name


class Record(Scored):
    """One identity of one run."""

    command: str
    experiment: Name | None
    created_at: str
    versions: dict[str, Any]
    stages: dict[str, Count]
    made_with: dict[str, dict[str, Any]]
    machine: dict[str, Any]
    processors: Processors
    loss: Name
    timestep_policy: Name
    photos: Count
    config: dict[str, Any]
    digests: dict[str, Any]
    seconds: Duration
    peak_memory_bytes: dict[str, Any]

    @validator(mode="after")
    def _configured(self) -> "Record":
        if missing := [key for key in CONFIGURED if key not in self.config]:
            raise ValueError(f"config.{missing[0]} is missing")
        return self


def record_of(data: object, where: str) -> Scored:
    """Return the record that `data` describes.

    Raises RecordError, whose message begins with `where`, if `data` is none of this schema.
    """
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if version != SCHEMA_VERSION:
        advice = ": the tag v0.1.0 of this project reads it; run the record's command again"
        raise RecordError(
            f"{where}: schema_version is {version!r}, expected {SCHEMA_VERSION}"
            + (advice if version == 1 else "")
        )
    try:
        return (Imported if "imported" in data else Record).model_validate(data)
    except ValidationError as error:
        raise RecordError(f"{where}: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    """Return the first thing that is wrong, in words."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    key = ".".join(part for part in parts if part not in ("int", "float"))
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is no key of a record"
        case "int_type" | "float_type" | "finite_number":
            kind = "an integer" if parts[-1] == key.rpartition(".")[2] else "a number"
            return f"{key} is {_short(first['input'])}, expected {kind}"
        case "value_error" if not key:
            return message
        case "value_error" if " is " in message:
            return f"{key}.{message}"
    return f"{key} is {_short(first['input'])}: {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
