"""The configuration: every option composes, its keys are those of the class it names, and the
command line wins.
"""

import inspect
from collections.abc import Iterator
from itertools import cycle, permutations

import pytest
from conf_options import OPTIONS, options, resolved
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.setup.composing import composed

# what the command line must say besides the option itself
NEEDED = {
    ("attack", "precomputed"): ["attack.root=."],
    ("dataset", "folder"): ["dataset.root=."],
}
# keys that the pipeline keeps for itself
OWN_KEYS = {
    "attack": {"others"},
    "countermeasure": {"model"},
    "customizer": {"base_model", "precision"},
    "dataset": {"shard"},
}
# values that differ from the constructor's defaults on purpose
NOT_THE_DEFAULT = {
    ("attack", "adapters"): "what aspl_lora is for",
    ("attack", "combination"): "made anew for each attack, so there is no default to compare",
    ("tracker", "upload_images"): "decided by the data set where it is null",
    ("countermeasure", "quality"): "what the presets jpeg90 and jpeg50 are for",
    ("customizer", "prior_weight"): "textual inversion preserves no prior",
    ("customizer", "gradient_clip"): "diffusers' textual inversion has none",
}


def with_option(group: str, option: str) -> DictConfig:
    return composed(f"{group}={option}", *NEEDED.get((group, option), []))


def targets(node: DictConfig) -> Iterator[DictConfig]:
    """Give the nodes in `node` that name a class, without following interpolations."""
    if "_target_" in node:
        yield node
    for key in node:
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            value = node[key]
            if isinstance(value, DictConfig):
                yield from targets(value)


def test_the_groups_are_found():
    groups = {"attack", "loss", "timestep_policy", "surrogate_model", "customizer", "dataset"}
    assert groups | {"countermeasure", "adversary", "experiment"} <= {group for group, _ in OPTIONS}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_its_keys_are_the_constructors(group, option):
    config = with_option(group, option)
    assert OmegaConf.missing_keys(config) == set()
    resolved(config)
    if group not in config:
        return  # an experiment: of other groups' keys alone
    for node in targets(config[group]):
        parameters = inspect.signature(get_class(node._target_)).parameters
        keys = set(node) - {"_target_"} - OWN_KEYS.get(group, set())
        assert keys <= parameters.keys()
        required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
        assert required <= keys | ({"device"} if group == "metrics" else set())
        if option.endswith(("_released", "_fast")):
            continue  # it differs from the described defaults: that is what it is for
        for key in keys - required:
            if OmegaConf.is_interpolation(node, key) or (group, key) in NOT_THE_DEFAULT:
                continue
            value = node[key]
            if OmegaConf.is_list(value):
                value = type(parameters[key].default)(value)
            assert value == parameters[key].default, key


@pytest.mark.parametrize("attack", options("attack"))
def test_every_attack_loss_and_timestep_policy_go_together(attack):
    # each loss and each policy once: they are nodes of their own that know nothing of each other
    pairs = list(zip(options("loss"), cycle(options("timestep_policy"))))
    pairs += [(options("loss")[0], policy) for policy in options("timestep_policy")[1:]]
    if not get_class(with_option("attack", attack).attack._target_).needs_surrogate:
        pairs = pairs[:1]  # it has neither
    for loss, policy in pairs:
        config = composed(
            f"attack={attack}",
            f"loss={loss}",
            f"timestep_policy={policy}",
            *NEEDED.get(("attack", attack), []),
        )
        node = {key: value for key, value in resolved(config.attack).items() if key != "others"}
        made = instantiate(node, _convert_="object")
        assert isinstance(made, get_class(config.attack._target_))
        assert made.eps == config.attack.eps
        if made.needs_surrogate:
            assert made.loss == instantiate(config.loss, _convert_="object")
            assert made.timestep_policy == instantiate(config.timestep_policy, _convert_="object")


@pytest.mark.parametrize("customizer", options("customizer"))
@pytest.mark.parametrize("model", options("surrogate_model"))
def test_customizers_follow_the_model(customizer, model):
    config = composed(f"customizer={customizer}", f"surrogate_model={model}")
    scale = config.surrogate_model.training[customizer]
    node = {k: v for k, v in resolved(config.customizer).items() if k not in OWN_KEYS["customizer"]}
    made = instantiate(node, _convert_="object")
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


def test_simac_chooses_its_policy_and_loss():
    config = composed("attack=simac")
    assert config.timestep_policy._target_.endswith(".AdaptiveGreedy")
    assert config.loss._target_.endswith(".FeatureInterference")
    assert config.attack.loss == config.loss
    assert config.attack.timestep_policy == config.timestep_policy
    plain = composed("attack=aspl")
    assert plain.timestep_policy._target_.endswith(".Uniform")
    assert plain.loss._target_.endswith(".Denoising")


@pytest.mark.parametrize("attack", ["simac", "simac_released"])
@pytest.mark.parametrize("place", [0, 1, 2])
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
