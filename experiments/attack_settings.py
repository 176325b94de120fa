"""Which settings of an attack decide its result."""

from collections.abc import Mapping


def in_use(attack: Mapping) -> Mapping:
    """Return the settings of an attack but those that change nothing where they are left alone, so
    that an option that came later does not tell an attack apart from its former self.

    The other surrogates of an ensemble are not among them: their weights are.
    """
    unused = ["others"]
    unused += [] if attack.get("draws_per_step", 1) > 1 else ["draws_per_step"]
    unused += [] if attack.get("transforms") else ["transforms", "transform_samples"]
    unused += [] if attack.get("others") else ["combination"]
    settings = {key: value for key, value in attack.items() if key not in unused}
    policy = settings.get("timestep_policy", {})
    if policy.get("gradient") == "image":
        settings["timestep_policy"] = {k: v for k, v in policy.items() if k != "gradient"}
    return settings
