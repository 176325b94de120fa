"""Names of rows: a choice of the command line, and how the run departs from it."""

from collections.abc import Mapping

from experiments.records.naming import differences, method_parts, setting_parts, without
from experiments.setup.composing import composed_here, resolved

# groups whose values are named one by one, or decide no number
UNNAMED = ("experiment", "quirk", "memory", "tracker")
PARTS_OF_METHODS = ("loss", "timestep_policy")  # an attack chooses them; a run may choose others
MODELS_OF_METHODS = "surrogate_model@attack."


def row_names(
    config: Mapping, choices: Mapping[str, str], default_precision: str
) -> tuple[str, str]:
    """Return the names of a run's method and of the details of its setting.

    `config` is resolved. `simac (steps=12)` is the choice `attack=simac` with another number of
    steps than it has beside the run's other choices. `default_precision` is the device's own.
    """
    usual, usual_choices = _preset(choices, config["precision"], PARTS_OF_METHODS)
    words = [
        f"{group}={choices[group]}"
        for group in PARTS_OF_METHODS
        if group in config["attack"] and choices[group] != usual_choices[group]
    ]
    words += [
        f"{group.removeprefix(MODELS_OF_METHODS)}={option}"
        for group, option in sorted(choices.items())
        if group.startswith(MODELS_OF_METHODS) and usual_choices.get(group) != option
    ]
    like = _preset(choices, config["precision"])[0] if words else usual
    parts = [without(method_parts(node), "others") for node in (config, like)]
    method = ", ".join(filter(None, [*words, differences(*parts, config["attack"])]))
    details = [differences(setting_parts(config), setting_parts(usual), config)]
    if config["precision"] != default_precision:
        details.append(f"precision={config['precision']}")
    name = f"{choices['attack']} ({method})" if method else choices["attack"]
    return name, ", ".join(filter(None, details))


def _preset(
    choices: Mapping[str, str], precision: str, skipped: tuple[str, ...] = ()
) -> tuple[dict, Mapping[str, str]]:
    """Return the resolved configuration that choices alone compose, and its own choices."""
    words = [
        f"{group}={option}"
        for group, option in choices.items()
        if option and "@" not in group and "/" not in group and group not in (*UNNAMED, *skipped)
    ]
    config = composed_here(*words, f"precision={precision}")
    return resolved(config), config.hydra.runtime.choices
