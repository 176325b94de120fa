"""What a record was measured under: its setting and its method, told apart from all others."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from experiments.records.record import STAGES
from experiments.records.settings_in_use import in_use, is_option

OWN = "this project"
AS_ASSUMED = "as_assumed"
# what scored records that do not say so: they came before it was recorded
SCORERS = {
    "sface.safetensors": "a20bb424ccb61f1a22253576a6bc8a3ce2ac9505d9360ee75500be4f9c61be26",
    "brisque_live.safetensors": "d261b629a15ce350884b23e097ac16489eb093cd4e2981cc4cce09ab8675d055",
}


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """What the adversary does and how it is scored; all but `eps` and the method.

    `details` is empty where the names say it all, and else lists what differs under equal names.
    """

    dataset: str
    customizer: str
    base_model: str
    countermeasure: str
    clean_photos: int
    adversary: str
    surrogate_model: str
    backbone: str
    source: str = OWN
    details: str = ""

    @property
    def heading(self) -> str:
        """Data set, customizer, and what the adversary does besides."""
        adversary = self.adversary.replace("_", " ")
        words = [self.dataset, self.customizer, *self._treatment]
        return ", ".join(words + ([adversary] if self.adversary != AS_ASSUMED else []))

    @property
    def title(self) -> str:
        """One line without data set and customizer, which stand in columns of their own."""
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
        """Sorts the plain setting of a customizer before all others of it."""
        treated = self.countermeasure != "none"
        adverse = self.adversary != AS_ASSUMED
        return self.dataset, self.customizer, treated, self.clean_photos, adverse, self


NAMES = tuple(field.name for field in fields(Setting) if field.name != "details")


@dataclass(frozen=True, kw_only=True, order=True)
class Configuration:
    """Where a record belongs: all its seeds and identities have the same one."""

    setting: Setting
    eps: float
    method: str


def configurations(records: Mapping[str, Mapping]) -> dict[str, Configuration]:
    """Return the configuration of each named record, in words that tell all of them apart."""
    alike = defaultdict(list)
    for name, record in records.items():
        alike[tuple(names(record).values())].append(name)
    found = {}
    for group in alike.values():
        of_setting = differences([details_of_setting(records[name]) for name in group])
        methods = defaultdict(list)
        for name in group:
            methods[records[name]["attack"]].append(name)
        of_method = {
            name: words
            for members in methods.values()
            for name, words in zip(
                members,
                differences([details_of_method(records[name]) for name in members]),
                strict=True,
            )
        }
        for name, details in zip(group, of_setting, strict=True):
            record, more = records[name], of_method[name]
            found[name] = Configuration(
                setting=Setting(**names(record), details=details),
                eps=float(record["eps"]),
                method=f"{record['attack']} ({more})" if more else record["attack"],
            )
    return found


def names(record: Mapping) -> dict[str, str | int]:
    """The names of a record's setting, by the fields of Setting."""
    special = {
        "base_model": base_model(record),
        "backbone": record["scorer"]["backbone"],
        "source": record["imported"]["source"] if "imported" in record else OWN,
    }
    return {key: special[key] if key in special else record[key] for key in NAMES}


def base_model(record: Mapping) -> str:
    if "imported" in record:
        return record["base_model"]
    return record["config"]["customizer"]["base_model"]["name"]


def details_of_setting(record: Mapping) -> dict:
    """What decides the numbers besides the names and the method."""
    if "imported" in record:
        return {}
    config, digests = record["config"], record["digests"]
    parts = {
        "customizer": in_use(_without(config["customizer"], "base_model")),
        "gallery": config["gallery"],
        "class_images": {
            **config["class_images"],
            "surrogate_model": _drawing(config.get("surrogate_model", {})),
            "base_model": _drawing(config["customizer"]["base_model"]),
        },
        "countermeasure": _without(config["countermeasure"], "model"),
        "dataset": _without(config["dataset"], "identities", "shard", "root", "name", "hint"),
        "metrics": config["metrics"],
        "precision": config["precision"],
        "weights": {k: digests.get(k) for k in ("base_model", "surrogate_model", "purifier")},
        "scorer": digests.get("scorer", SCORERS),
        "stages": _without(record.get("stages", STAGES), "protect"),
    }
    return parts


def details_of_method(record: Mapping) -> dict:
    """The settings of an attack but its budget; the names of its loss and policy before theirs."""
    if "imported" in record:
        return {}
    settings = in_use(record["config"]["attack"])
    attack = _without(settings, "eps", "loss", "timestep_policy")
    others = {k: v for k, v in record["digests"].items() if k.startswith("attack.")}
    for name, model in (record["config"]["attack"].get("others") or {}).items():
        others[f"attack.others.{name}.gallery"] = _drawing(model)
    chosen = {
        key: {"": record[key], **settings.get(key, {})} for key in ("loss", "timestep_policy")
    }
    stages = {"protect": record.get("stages", STAGES)["protect"]}
    return chosen | attack | others | {"stages": stages}


def _drawing(model: Mapping) -> dict:
    """How class images are drawn with a model."""
    return _without(model.get("gallery", {}), "images_per_prompt")


def differences(details: Sequence[Mapping]) -> list[str]:
    """What each has that the usual one does not, in words; where none is usual, what each has that
    not all have. What differs with its group is left to that.
    """
    texts = [json.dumps(one, sort_keys=True) for one in details]
    flat = {text: dict(_flat(json.loads(text))) for text in dict.fromkeys(texts)}
    usual = _usual(Counter(texts), flat)
    keys = sorted({key for one in flat.values() for key in one})
    if usual is not None:
        # an option that only some have in use is named with these: those without it cannot say so
        everywhere = set.intersection(*(set(one) for one in flat.values()))
        usual = {k: v for k, v in usual.items() if k in everywhere or not is_option(k)}
        unlike = {
            text: [key for key in keys if usual.get(key) != one.get(key)]
            for text, one in flat.items()
        }
    else:
        apart = [key for key in keys if len({one.get(key) for one in flat.values()}) > 1]
        unlike = dict.fromkeys(flat, apart)
    told = {
        text: [key for key in own if not any(key.startswith(f"{other}.") for other in own)]
        for text, own in unlike.items()
    }
    briefly = {text: _without_parts(own) for text, own in told.items()}
    words = [_words(flat, chosen) for chosen in (briefly, told, unlike)]
    chosen = next((one for one in words if len(set(one.values())) == len(flat)), words[-1])
    return [chosen[text] for text in texts]


def _usual(counts: Counter, flat: Mapping[str, Mapping]) -> Mapping | None:
    """The most common; of equally common ones that from which the others differ in the fewest
    settings, None if two are alike in this too.
    """
    most = max(counts.values())
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    values = {key: Counter(one.get(key) for one in flat.values()) for key in keys}

    def apart(text: str) -> int:
        return sum(len(flat) - of[flat[text].get(key)] for key, of in values.items())

    first, *second = sorted((apart(text), text) for text, n in counts.items() if n == most)
    return flat[first[1]] if not second or first[0] < second[0][0] else None


def _without_parts(keys: Sequence[str]) -> list[str]:
    """The keys without the settings of an object that is named by its class."""
    objects = [key.removesuffix("_target_") for key in keys if key.endswith("._target_")]
    return [
        key
        for key in keys
        if key.endswith("._target_") or not any(key.startswith(one) for one in objects)
    ]


def _words(flat: Mapping[str, Mapping], keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {
        text: ", ".join(
            _word(key, one.get(key, "none"))
            for key in keys[text]
            if key in one or not is_option(key)
        )
        for text, one in flat.items()
    }


def _word(key: str, value: str) -> str:
    if key.endswith("._target_"):  # the object, by the name of its class
        name = value.strip('"').rpartition(".")[2]
        return f"{key.removesuffix('._target_')}={name}"
    return f"{key}={_short(value)}"


def _short(text: str) -> str:
    """A value's JSON without quotes, or, of long ones, few letters that tell them apart: of weights
    the beginning of their digest, of others their own and a digest.
    """
    text = text.replace('"', "").replace(", ", ",")
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:8]
    if len(text) <= 48:
        return text
    return f"{text[:20].rstrip()}...{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, ".".join(filter(None, (key, name))))
    else:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 8 and 8.0 are one setting
        yield key, json.dumps(value, ensure_ascii=False)


def _without(node: Mapping, *keys: str) -> dict:
    return {key: value for key, value in node.items() if key not in keys}
