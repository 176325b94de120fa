"""Score a gallery, the images sampled from a victim, against photos of the person."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from eval.face_quality import SCALING, generator_for, scaled, ser_fiq_raw
from eval.faces import Face, FaceReader
from eval.identity import failures_as_0, fdfr, over_detected, reference_embedding, similarity
from eval.image_files import read_image
from eval.image_quality import LIVE, Brisque, PyIQA
from eval.metrics import METRICS
from eval.recognizers import Recognizer, load_recognizer, require_backbone, weights_of

# columns of a row that are no scores to average
ROW_LABELS = ("prompt", "image", "face_found", "face_probability")


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores images one at a time: no row depends on the other images or on their order."""

    backbone: str = "sface"  # or facenet
    brisque: bool = True
    ser_fiq: bool = True
    pyiqa: Sequence[str] = ()  # further metrics of pyiqa: of galleries, or of full reference
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_backbone(self.backbone)
        if twice := [name for name in self.pyiqa if name in METRICS and name != "lpips"]:
            raise ValueError(f"metrics.pyiqa={list(self.pyiqa)}: {twice[0]} is measured already")
        _ = self._pyiqa  # refuses a metric that cannot be loaded now, not after hours of training

    @property
    def weights(self) -> list[Path]:
        """The files of the weights that decide the scores, but for those in packages (the face
        detector's) and those that pyiqa keeps.
        """
        return [weights_of(self.backbone), *([LIVE] if self.brisque else [])]

    def __call__(
        self, gallery: Mapping[str, Sequence[Path]], reference: Sequence[Path]
    ) -> list[dict[str, object]]:
        """Return a row per image of `gallery`, which maps each prompt to its image files.

        A row has `prompt`, `image`, `face_found`, `face_probability`, `similarity`, `ser_fiq_raw`,
        `ser_fiq` and `brisque`: None where it needs a face and there is none. What is switched off
        is missing, and so is `ser_fiq` for a backbone without a scaling. Raises ValueError for a
        prompt without images, and for a reference without any face.
        """
        empty = [prompt for prompt, files in gallery.items() if not files]
        if empty or not gallery:
            raise ValueError(f"the gallery has no images for {empty or 'any prompt'}; sample some")
        target = self._reference_embedding(reference)
        return [
            {"prompt": prompt, **self._row(Path(file), target)}
            for prompt, files in gallery.items()
            for file in files
        ]

    def similarity_of(self, files: Sequence[Path], reference: Sequence[Path]) -> list[float | None]:
        """Return each file's cosine to the reference, None where no face is found."""
        target = self._reference_embedding(reference)
        faces = [self._faces(read_image(file)) for file in files]
        return [
            None if face is None else similarity(self._embedding(face), target) for face in faces
        ]

    def _row(self, file: Path, target: Tensor) -> dict[str, object]:
        image = read_image(file)
        face = self._faces(image)
        row = {"image": file.name, "face_found": face is not None}
        row |= dict.fromkeys(self._face_columns)
        if face is not None:
            row |= self._face_scores(face, file.name, target)
        if self.brisque:
            row["brisque"] = self._brisque(image)
        return row | {metric.name: metric(image) for metric in self._pyiqa if not metric.compares}

    @property
    def comparing(self) -> list[PyIQA]:
        """The metrics of full reference, which compare protected photos with the clean ones."""
        return [metric for metric in self._pyiqa if metric.compares]

    @property
    def _face_columns(self) -> list[str]:
        columns = ["face_probability", "similarity"]
        if self.ser_fiq:
            columns += ["ser_fiq_raw"] + ["ser_fiq"] * (self.backbone in SCALING)
        return columns

    def _face_scores(self, face: Face, name: str, target: Tensor) -> dict[str, float]:
        features = self._recognizer.features(face.crop[None])
        embedding = self._recognizer.embed(features)[0]
        scores = {"face_probability": face.probability, "similarity": similarity(embedding, target)}
        if self.ser_fiq:
            raw = ser_fiq_raw(features, self._recognizer, generator_for(name))
            scores["ser_fiq_raw"] = raw
            if self.backbone in SCALING:
                scores["ser_fiq"] = scaled(raw, self.backbone)
        return scores

    def _reference_embedding(self, files: Sequence[Path]) -> Tensor:
        faces = [self._faces(read_image(file)) for file in files]
        if not any(faces):
            where = ", ".join(str(file) for file in files[:4]) or "an empty list"
            raise ValueError(
                f"no face found in any of the {len(files)} reference photos ({where}); "
                "put photos that show the person's face into set_A"
            )
        return reference_embedding([self._embedding(face) for face in faces if face])

    def _embedding(self, face: Face) -> Tensor:
        return self._recognizer.embed(self._recognizer.features(face.crop[None]))[0]

    @cached_property
    def _recognizer(self) -> Recognizer:
        return load_recognizer(self.backbone, self.device)

    @cached_property
    def _faces(self) -> FaceReader:
        return FaceReader(self._recognizer, self.device)

    @cached_property
    def _brisque(self) -> Brisque:
        return Brisque()

    @cached_property
    def _pyiqa(self) -> list[PyIQA]:
        return [PyIQA(name, self.device) for name in self.pyiqa]


def summarize(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the scores of a gallery: the mean over its prompts, each prompt weighing the same.

    A prompt without any face has None as `ism`, `ser_fiq` and `ser_fiq_raw`, which the mean leaves
    out. `prompts` holds the same keys for each prompt and its number of `images`.
    """
    prompts = {
        prompt: _of_prompt([row for row in rows if row["prompt"] == prompt])
        for prompt in dict.fromkeys(row["prompt"] for row in rows)
    }
    keys = [key for key in next(iter(prompts.values())) if key != "images"]
    means = {key: over_detected([prompt[key] for prompt in prompts.values()]) for key in keys}
    return {**means, "prompts": prompts}


def _of_prompt(rows: Sequence[Mapping[str, object]]) -> dict[str, float | None]:
    scores = {key: [row[key] for row in rows] for key in rows[0] if key not in ROW_LABELS}
    similarities = scores.pop("similarity")
    summary = {
        "ism": over_detected(similarities),
        "ism_failures_as_0": failures_as_0(similarities),
        "fdfr": fdfr(similarities),
    }
    for key, values in scores.items():
        summary[key] = over_detected(values)
        if key == "ser_fiq":
            summary["ser_fiq_failures_as_0"] = failures_as_0(values)
    return {**summary, "images": len(rows)}
