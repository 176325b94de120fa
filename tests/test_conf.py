"""The configuration: every option composes, its keys are those of the class it names, and the
command line wins.
"""

import inspect
from collections.abc import Iterator
from itertools import permutations, product

import pytest
from conf_options import OPTIONS, composed, options, resolved
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

# words that an option needs beside it
NEEDED = {
    ("attack", "precomputed"): ["attack.root=."],
    ("dataset", "folder"): ["dataset.root=."],
}
# keys that the pipeline keeps for itself
PIPELINE_KEYS = {
    "attack": {"others"},
    "countermeasure": {"model"},
    "customizer": {"base_model", "precision"},
    "dataset": {"shard"},
}
# values that differ from the constructor's defaults, and why
NOT_THE_DEFAULT = {
    ("attack", "adapters"): "aspl_lora is for them",
    ("attack", "combination"): "each attack makes its own, so no default equals it",
    ("tracker", "upload_images"): "where it is null, the data set decides",
    ("countermeasure", "quality"): "jpeg90 and jpeg50 are for other qualities",
    ("customizer", "prior_weight"): "textual inversion preserves no prior",
    ("customizer", "gradient_clip"): "diffusers' textual inversion has none",
}


def targets(node: DictConfig) -> Iterator[DictConfig]:
    """Yield the nodes in `node` that name a class, without following interpolations."""
    if "_target_" in node:
        yield node
    for key in node:
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            value = node[key]
            if isinstance(value, DictConfig):
                yield from targets(value)


def instantiated(node: DictConfig, group: str):
    """Return the object that a node describes, without the pipeline's own keys."""
    keys = {key: value for key, value in resolved(node).items() if key not in PIPELINE_KEYS[group]}
    return instantiate(keys, _convert_="object")


def test_the_groups_are_found():
    groups = {"attack", "loss", "timestep_policy", "surrogate_model", "customizer", "dataset"}
    assert groups | {"countermeasure", "adversary", "experiment"} <= {group for group, _ in OPTIONS}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_its_keys_are_the_constructors(group, option):
    config = composed(f"{group}={option}", *NEEDED.get((group, option), []))
    assert OmegaConf.missing_keys(config) == set()
    resolved(config)
    for node in targets(config.get(group, {})):  # an experiment has keys of other groups alone
        parameters = inspect.signature(get_class(node._target_)).parameters
        keys = set(node) - {"_target_"} - PIPELINE_KEYS.get(group, set())
        assert keys <= parameters.keys()
        required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
        assert required <= keys | ({"device"} if group == "metrics" else set())
        if option.endswith(("_released", "_fast")):
            continue  # such presets exist to differ from the described defaults
        for key in keys - required:
            if OmegaConf.is_interpolation(node, key) or (group, key) in NOT_THE_DEFAULT:
                continue
            value = node[key]
            if OmegaConf.is_list(value):
                value = type(parameters[key].default)(value)
            assert value == parameters[key].default, key


@pytest.mark.parametrize(
    ("attack", "loss", "policy"),
    [("aspl", *pair) for pair in product(options("loss"), options("timestep_policy"))]
    + [(attack, None, None) for attack in options("attack")],
)
def test_every_attack_loss_and_timestep_policy_go_together(attack, loss, policy):
    words = [f"loss={loss}", f"timestep_policy={policy}"] if loss else []
    config = composed(f"attack={attack}", *NEEDED.get(("attack", attack), []), *words)
    made = instantiated(config.attack, "attack")
    assert isinstance(made, get_class(config.attack._target_))
    assert made.eps == config.attack.eps
    if made.needs_surrogate:
        assert made.loss == instantiate(config.loss, _convert_="object")
        assert made.timestep_policy == instantiate(config.timestep_policy, _convert_="object")


def training_keys(model: str) -> dict[str, set[str]]:
    """Return the names of a model's settings for each customizer."""
    training = composed(f"surrogate_model={model}").surrogate_model.training
    return {customizer: set(training[customizer]) for customizer in options("customizer")}


@pytest.mark.parametrize(
    ("customizer", "model"),
    [(customizer, "sd21") for customizer in options("customizer")]
    + [("dreambooth", model) for model in options("surrogate_model") if model != "sd21"],
)
def test_customizers_follow_the_model(customizer, model):
    assert training_keys(model) == training_keys("sd21")
    config = composed(f"customizer={customizer}", f"surrogate_model={model}")
    scale = config.surrogate_model.training[customizer]
    made = instantiated(config.customizer, "customizer")
    assert made.training.learning_rate == scale.learning_rate
    assert made.training.batch_size == scale.batch_size
    assert made.steps == scale.steps
    assert made.instance_prompt == config.prompts.instance


def test_the_victim_may_be_another_model_than_the_surrogate():
    config = composed(
        "customizer=lora", "surrogate_model=tiny", "+surrogate_model@customizer.base_model=sd15"
    )
    sd15 = composed("surrogate_model=sd15").surrogate_model
    assert config.surrogate_model.name == "tiny"
    assert config.customizer.base_model.name == "sd15"
    assert config.customizer.training.learning_rate == sd15.training.lora.learning_rate
    assert config.gallery.images_per_prompt == sd15.gallery.images_per_prompt


@pytest.mark.parametrize(
    "words", list(permutations(["dataset=vggface2", "surrogate_model=tiny", "attack=simac"]))
)
def test_the_command_line_chooses_the_model_in_any_order(words):
    config = composed(*words)
    assert config.surrogate_model.name == "tiny"
    assert config.attack.surrogate_schedule.training.learning_rate == pytest.approx(
        config.surrogate_model.training.surrogate.learning_rate
    )
    assert config.dataset.root == "data/vggface2"


@pytest.mark.parametrize(
    ("attack", "policy", "loss"),
    [("simac", "AdaptiveGreedy", "FeatureInterference"), ("aspl", "Uniform", "Denoising")],
)
def test_an_attack_chooses_its_policy_and_loss(attack, policy, loss):
    config = composed(f"attack={attack}")
    assert config.timestep_policy._target_.endswith(f".{policy}")
    assert config.loss._target_.endswith(f".{loss}")
    assert config.attack.loss == config.loss
    assert config.attack.timestep_policy == config.timestep_policy


@pytest.mark.parametrize(
    ("attack", "place"),
    [("simac", 0), ("simac", 1), ("simac", 2), ("simac_released", 2), ("t_aspl", 2)],
)
def test_the_command_line_wins_over_the_attack_in_any_order(attack, place):
    words = ["timestep_policy=uniform", "loss=denoising"]
    words.insert(place, f"attack={attack}")
    made = instantiate(composed(*words).attack, _convert_="object")
    assert type(made.timestep_policy).__name__ == "Uniform"
    assert type(made.loss).__name__ == "Denoising"


@pytest.mark.parametrize(
    "words",
    [["attack.epz=3"], ["attack=simacc"], ["+loss=mse"], ["dataset.identitys=2"], ["sed=1"]],
)
def test_what_does_not_exist_is_refused(words):
    with pytest.raises(HydraException):
        composed(*words)


def test_keys_that_every_run_has():
    config = composed(
        "seed=3", "output_dir=elsewhere", "dataset.identities=[7,9]", "precision=mixed"
    )
    assert config.seed == 3
    assert config.dataset.identities == [7, 9]
    assert config.stages == ["protect", "customize", "eval"]
    assert config.device == "auto"
    assert config.attack.precision == config.customizer.precision == "mixed"
    assert composed("customizer=lora", "seed=4").customizer.seed == 4
    assert "/" in composed("surrogate_model.path=a/b").customizer.base_model.path
