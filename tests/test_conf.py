"""The configuration: every option composes, and its keys are those of the class it names."""

import inspect
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(
    (file.parent.relative_to(CONF).as_posix(), file.stem)
    for file in CONF.rglob("*.yaml")
    if file.parent != CONF
    and not file.stem.startswith("_")
    and file.relative_to(CONF).parts[0] != "hydra"  # of plugins that need not be installed
)
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
    ("attack", "combination"): "made anew for each attack, so there is no default to compare",
    ("tracker", "upload_images"): "decided by the data set where it is null",
    ("countermeasure", "quality"): "what the presets jpeg90 and jpeg50 are for",
    ("customizer", "prior_weight"): "textual inversion preserves no prior",
}
TRAINING = "surrogate_schedule.training"


def options(group: str) -> list[str]:
    return [option for g, option in OPTIONS if g == group]


@pytest.fixture(scope="module")
def job(conf):
    """Return the configuration that a command line composes."""
    with initialize_config_dir(conf, version_base="1.3"):
        yield lambda *overrides: compose("config", list(overrides))


def with_option(job, group: str, option: str) -> DictConfig:
    return job(f"{group}={option}", *NEEDED.get((group, option), []))


def resolved(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True)


def flat(node: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        leaves |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return leaves


def differences(one: DictConfig, other: DictConfig) -> dict:
    a, b = flat(resolved(one)), flat(resolved(other))
    return {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}


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
def test_every_option_composes_and_its_keys_are_the_constructors(job, group, option):
    config = with_option(job, group, option)
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
def test_every_attack_loss_and_timestep_policy_go_together(job, attack):
    pairs = list(product(options("loss"), options("timestep_policy")))
    if not get_class(with_option(job, "attack", attack).attack._target_).needs_surrogate:
        pairs = pairs[:1]  # it has neither
    for loss, policy in pairs:
        config = job(
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
def test_customizers_follow_the_model(job, customizer, model):
    config = job(f"customizer={customizer}", f"surrogate_model={model}")
    scale = config.surrogate_model.training[customizer]
    node = {k: v for k, v in resolved(config.customizer).items() if k not in OWN_KEYS["customizer"]}
    made = instantiate(node, _convert_="object")
    assert made.training.learning_rate == scale.learning_rate
    assert made.training.batch_size == scale.batch_size
    assert made.steps == scale.steps
    assert made.instance_prompt == config.prompts.instance


def test_the_victim_may_be_another_model_than_the_surrogate(job):
    config = job(
        "customizer=lora", "surrogate_model=tiny", "+surrogate_model@customizer.base_model=sd15"
    )
    sd15 = job("surrogate_model=sd15").surrogate_model
    assert config.surrogate_model.name == "tiny"
    assert config.customizer.base_model.name == "sd15"
    assert config.customizer.training.learning_rate == sd15.training.lora.learning_rate
    assert config.gallery.images_per_prompt == sd15.gallery.images_per_prompt


def test_the_purifier_is_another_model_than_the_surrogate(job):
    words = ["surrogate_model=sd21", "countermeasure=purify"]
    assert job(*words).countermeasure.model.name == "tiny_b"
    config = job(*words, "surrogate_model@countermeasure.model=sd15")
    assert config.countermeasure.model.name == "sd15"
    assert config.surrogate_model.name == config.customizer.base_model.name == "sd21"


@pytest.mark.parametrize("dataset", ["vggface2", "celebahq"])
def test_the_papers_data_sets_choose_the_papers_model(job, dataset):
    config = job(f"dataset={dataset}")
    assert config.surrogate_model.name == "sd21"
    assert config.customizer.base_model.name == "sd21"
    assert config.attack.surrogate_schedule.training.learning_rate == 5e-7
    assert job().surrogate_model.name == "tiny"


@pytest.mark.parametrize(
    "words", list(permutations(["dataset=vggface2", "surrogate_model=tiny", "attack=simac"]))
)
def test_the_command_line_chooses_the_model_in_any_order(job, words):
    config = job(*words)
    assert config.surrogate_model.name == "tiny"
    assert config.attack.surrogate_schedule.training.learning_rate == pytest.approx(
        config.surrogate_model.training.surrogate.learning_rate
    )
    assert config.dataset.root == "data/vggface2"


def test_simac_chooses_its_policy_and_loss(job):
    config = job("attack=simac")
    assert config.timestep_policy._target_.endswith(".AdaptiveGreedy")
    assert config.loss._target_.endswith(".FeatureInterference")
    assert config.attack.loss == config.loss
    assert config.attack.timestep_policy == config.timestep_policy
    plain = job("attack=aspl")
    assert plain.timestep_policy._target_.endswith(".Uniform")
    assert plain.loss._target_.endswith(".Denoising")


@pytest.mark.parametrize("attack", ["simac", "simac_released"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_command_line_wins_over_the_attack_in_any_order(job, attack, place):
    words = ["timestep_policy=uniform", "loss=denoising"]
    words.insert(place, f"attack={attack}")
    made = instantiate(job(*words).attack, _convert_="object")
    assert type(made.timestep_policy).__name__ == "Uniform"
    assert type(made.loss).__name__ == "Denoising"


def test_simac_is_aspl_with_its_policy_and_loss(job):
    recombined = job("attack=aspl", "timestep_policy=adaptive_greedy", "loss=feature_interference")
    assert differences(job("attack=simac").attack, recombined.attack) == {}


@pytest.mark.parametrize(
    ("attack", "own"),
    [
        ("aspl", {"eps": (8, 6.375)}),
        (
            "simac",
            {"loss.reference": ("original", "phase_start"), "loss.gradient": (True, False)},
        ),
    ],
)
def test_released_presets_differ_in_the_named_options_only(job, attack, own):
    described, released = job(f"attack={attack}"), job(f"attack={attack}_released")
    assert differences(described.attack, released.attack) == {
        "precision": ("auto", "bfloat16"),
        f"{TRAINING}.gradient_clip": (1.0, None),
        f"{TRAINING}.order": ("continue", "restart"),
        f"{TRAINING}.optimizer": ("keep", "per_call"),
        **own,
    }


def test_the_papers_numbers(job):
    """Of Anti-DreamBooth's and SimAC's scripts, with eps and steps in grey levels."""
    config = job("attack=simac", "surrogate_model=sd21")
    assert flat(resolved(config.attack)) == {
        "_target_": "anticustom.attacks.pgd.PGD",
        "eps": 8,
        "step_size": pytest.approx(0.005 * 127.5),
        "steps": 6,
        "instance_prompt": "a photo of sks person",
        "class_prompt": "a photo of person",
        "precision": "auto",
        "draws_per_step": 1,
        "transforms": [],
        "transform_samples": 1,
        "loss._target_": "anticustom.losses.FeatureInterference",
        "loss.weight": 1.0,
        "loss.up_blocks": [3],
        "loss.reference": "original",
        "loss.gradient": True,
        "timestep_policy._target_": "anticustom.timestep_policies.AdaptiveGreedy",
        "timestep_policy.candidates": 5,
        "timestep_policy.window": 40,
        "timestep_policy.margin": 20,
        "timestep_policy.keep": 100,
        "timestep_policy.max_rounds": 50,
        "timestep_policy.gradient": "image",
        "surrogate_schedule._target_": "anticustom.surrogates.Alternating",
        "surrogate_schedule.iterations": 50,
        "surrogate_schedule.training_steps": 3,
        "surrogate_schedule.adapters": None,
        "surrogate_schedule.training.optimizer_states": "32bit",
        f"{TRAINING}._target_": "anticustom.finetuning.FineTuning",
        f"{TRAINING}.learning_rate": 5e-7,
        f"{TRAINING}.batch_size": 1,
        f"{TRAINING}.prior_weight": 1.0,
        f"{TRAINING}.gradient_clip": 1.0,
        f"{TRAINING}.order": "continue",
        f"{TRAINING}.optimizer": "keep",
    }
    fsmg = job("attack=fsmg", "surrogate_model=sd21").attack
    schedule = instantiate(fsmg.surrogate_schedule, _convert_="object")
    assert (fsmg.steps, schedule.iterations, schedule.training_steps) == (100, 1, 1000)
    assert (schedule.training.learning_rate, schedule.training.batch_size) == (5e-7, 2)
    assert job("attack=noise").attack.eps == 8
    for model in ("sd14", "sd15", "sd21"):
        node = job(f"surrogate_model={model}").surrogate_model
        assert node.gallery.images_per_prompt == 30
        assert node.class_images.count == 200
        assert len(node.revision) == 40
        assert node.needs_gpu


@pytest.mark.parametrize(
    "words",
    [["attack.epz=3"], ["attack=simacc"], ["+loss=mse"], ["dataset.identitys=2"], ["sed=1"]],
)
def test_what_does_not_exist_is_refused(job, words):
    with pytest.raises(HydraException):
        job(*words)


def test_keys_that_every_run_has(job):
    config = job("seed=3", "output_dir=elsewhere", "dataset.identities=[7,9]", "precision=mixed")
    assert config.seed == 3
    assert config.dataset.identities == [7, 9]
    assert config.stages == ["protect", "customize", "eval"]
    assert config.device == "auto"
    assert config.attack.precision == config.customizer.precision == "mixed"
    assert job("customizer=lora", "seed=4").customizer.seed == 4
    assert "/" in job("surrogate_model.path=a/b").customizer.base_model.path


def customized(config: DictConfig) -> tuple:
    """Return what the adversary decides: base model, customizer, training prompt, gallery."""
    customizer = config.customizer
    return (
        customizer.base_model.name,
        customizer._target_,
        customizer.instance_prompt,
        tuple(config.gallery.prompts),
    )


@pytest.mark.parametrize(
    ("adversary", "differs"),
    [
        ("as_assumed", (False, False, False, False)),
        ("other_customizer", (False, True, False, False)),
        ("other_term", (False, False, True, True)),
        ("other_prompts", (False, False, True, True)),
        ("other_model", (True, False, False, False)),
        ("all_other", (True, True, True, True)),
    ],
)
def test_an_adversary_differs_where_it_says_and_the_attack_stays(job, adversary, differs):
    assumed, other = job(), job(f"adversary={adversary}")
    pairs = zip(customized(assumed), customized(other), strict=True)
    assert tuple(a != b for a, b in pairs) == differs
    assert (
        resolved(other).items()
        >= {key: resolved(assumed)[key] for key in ("attack", "surrogate_model", "prompts")}.items()
    )


@pytest.mark.parametrize("quirk", sorted(set(options("quirk")) - {"none"}))
def test_a_quirk_is_one_of_the_released_presets_settings(job, quirk):
    """It changes one key of SimAC, to what the released preset has there."""
    described, released, own = (
        flat(resolved(job(*words).attack))
        for words in (["attack=simac"], ["attack=simac_released"], [f"quirk={quirk}"])
    )
    (key,) = [key for key in described if own[key] != described[key]]
    assert own[key] == released[key]


def test_the_command_line_wins_over_an_adversary(job):
    config = job("adversary=other_term", "customizer.instance_prompt=a photo of ohwx person")
    assert config.customizer.instance_prompt == "a photo of ohwx person"
    assert "xjy" in config.gallery.prompts[0]


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_sweeps_over_what_exists(job, experiment):
    config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    # some compare methods with themselves, all others have the placebo in them
    compares = experiment in ("quirks", "transforms")
    assert compares or "noise" in config.hydra.sweeper.params.attack.split(",")
    parser = OverridesParser.create()
    for key, values in config.hydra.sweeper.params.items():
        override = parser.parse_override(f"{key}={values}")
        choices = override.sweep_string_iterator() if override.is_sweep_override() else [values]
        for value in choices:
            swept = job(f"experiment={experiment}", f"{key}={value}")
            in_yaml = str(OmegaConf.select(swept, key)).replace("'", "").replace(", ", ",")
            assert key in dict(OPTIONS) or in_yaml == value
