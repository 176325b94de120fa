"""The configuration's presets: the papers' numbers, the released code, settings and experiments."""

import pytest
from conf_options import OPTIONS, composed, differences, flat, options, resolved
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

TRAINING = "surrogate_schedule.training"


def test_simac_is_aspl_with_its_policy_and_loss():
    recombined = composed(
        "attack=aspl", "timestep_policy=adaptive_greedy", "loss=feature_interference"
    )
    assert differences(composed("attack=simac").attack, recombined.attack) == {}


@pytest.mark.parametrize(
    ("attack", "further"),
    [
        ("aspl", {"eps": (8, 6.375)}),
        (
            "simac",
            {"loss.reference": ("original", "phase_start"), "loss.gradient": (True, False)},
        ),
    ],
)
def test_released_presets_differ_in_the_named_options_only(attack, further):
    described, released = composed(f"attack={attack}"), composed(f"attack={attack}_released")
    assert differences(described.attack, released.attack) == {
        "precision": ("auto", "bfloat16"),
        "training_precision": ("auto", "bfloat16"),
        f"{TRAINING}.gradient_clip": (1.0, None),
        f"{TRAINING}.order": ("continue", "restart"),
        f"{TRAINING}.optimizer": ("keep", "per_call"),
        **further,
    }


def test_the_papers_numbers():
    """They are those of Anti-DreamBooth's and SimAC's scripts, with eps in grey levels."""
    config = composed("attack=simac", "surrogate_model=sd21")
    assert flat(config.attack) == {
        "_target_": "anticustom.attacks.pgd.PGD",
        "eps": 8,
        "step_size": pytest.approx(0.005 * 127.5),
        "steps": 6,
        "instance_prompt": "a photo of sks person",
        "class_prompt": "a photo of person",
        "precision": "auto",
        "training_precision": "auto",
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
        "surrogate_schedule.keep_clean_training": False,
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
    fsmg = composed("attack=fsmg", "surrogate_model=sd21").attack
    schedule = instantiate(fsmg.surrogate_schedule, _convert_="object")
    assert (fsmg.steps, schedule.iterations, schedule.training_steps) == (100, 1, 1000)
    assert (schedule.training.learning_rate, schedule.training.batch_size) == (5e-7, 2)
    assert composed("attack=noise").attack.eps == 8
    ensemble = composed("attack=e_fsmg_released").attack
    assert (ensemble.surrogate_schedule.iterations, ensemble.steps) == (60, 12)
    victim = composed("surrogate_model=sd21").customizer  # DreamBooth, as both papers train it
    training = victim.training
    assert (victim.steps, training.learning_rate, training.batch_size) == (1000, 5e-7, 2)
    assert (training.prior_weight, training.gradient_clip) == (1.0, 1.0)
    for model in ("sd14", "sd15", "sd21"):
        node = composed(f"surrogate_model={model}").surrogate_model
        assert node.gallery.images_per_prompt == 30
        assert node.class_images.count == 200
        assert len(node.revision) == 40
        assert node.needs_gpu


@pytest.mark.parametrize("dataset", ["vggface2", "celebahq"])
def test_the_papers_data_sets_choose_the_papers_model(dataset):
    config = composed(f"dataset={dataset}")
    assert config.surrogate_model.name == "sd21"
    assert config.customizer.base_model.name == "sd21"
    assert config.attack.surrogate_schedule.training.learning_rate == 5e-7
    assert composed().surrogate_model.name == "tiny"


def customization(config: DictConfig) -> tuple:
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
        ("other_training_prompt", (False, False, True, False)),
        ("other_gallery_prompts", (False, False, False, True)),
        ("other_prompts", (False, False, True, True)),
        ("other_model", (True, False, False, False)),
        ("all_other", (True, True, True, True)),
    ],
)
def test_an_adversary_differs_where_it_says_and_the_attack_stays(adversary, differs):
    assumed, changed = composed(), composed(f"adversary={adversary}")
    pairs = zip(customization(assumed), customization(changed), strict=True)
    assert tuple(a != b for a, b in pairs) == differs
    for key in ("attack", "surrogate_model", "prompts"):
        assert resolved(changed[key]) == resolved(assumed[key])


def test_the_command_line_wins_over_an_adversary():
    config = composed("adversary=other_term", "customizer.instance_prompt=a photo of ohwx person")
    assert config.customizer.instance_prompt == "a photo of ohwx person"
    assert "xjy" in config.gallery.prompts[0]


QUIRKS = {  # each with the attack that an experiment tries it on
    quirk: config.hydra.sweeper.params.attack
    for name in options("experiment")
    if name.startswith("quirks")
    for config in [composed(f"experiment={name}", with_hydra=True)]
    for quirk in config.hydra.sweeper.params.quirk.split(",")
    if quirk != "none"
}


def quirk_differences(quirk: str) -> dict:
    """Return the keys that a quirk changes in its attack, each with both values."""
    attack = f"attack={QUIRKS[quirk]}"
    return differences(composed(attack).attack, composed(attack, f"quirk={quirk}").attack)


def test_every_quirk_is_tried_by_an_experiment():
    assert {*QUIRKS, "none"} == set(options("quirk"))


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_quirk_is_one_of_the_released_presets_settings(quirk):
    ((key, (_, value)),) = quirk_differences(quirk).items()
    assert flat(composed(f"attack={QUIRKS[quirk]}_released").attack)[key] == value


@pytest.mark.parametrize("attack", ["simac", "t_aspl", "e_aspl"])
def test_the_quirks_together_are_the_released_preset(attack):
    """ASPL's training is left out, whose quirks are tried on SimAC, and the published radius."""
    described, released = composed(f"attack={attack}"), composed(f"attack={attack}_released")
    left_out = {"precision", "training_precision", "eps"}
    left_out |= {f"{TRAINING}.{key}" for key in ("gradient_clip", "order", "optimizer")}
    changed = {key for q in QUIRKS if QUIRKS[q] == attack for key in quirk_differences(q)}
    assert set(differences(described.attack, released.attack)) - left_out == changed - left_out


def test_the_purifier_is_another_model_than_the_surrogate():
    words = ["surrogate_model=sd21", "countermeasure=purify"]
    assert composed(*words).countermeasure.model.name == "tiny_b"
    config = composed(*words, "surrogate_model@countermeasure.model=sd15")
    assert config.countermeasure.model.name == "sd15"
    assert config.surrogate_model.name == config.customizer.base_model.name == "sd21"


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_sweeps_over_what_exists(experiment):
    config = composed(f"experiment={experiment}", with_hydra=True)
    assert config.hydra.mode.name == "MULTIRUN"
    sweep = config.hydra.sweeper.params
    # some experiments compare methods with themselves, all others have the placebo in them
    assert experiment.startswith(("quirks", "transforms")) or "noise" in sweep.attack.split(",")
    parser = OverridesParser.create()
    for key, values in sweep.items():
        override = parser.parse_override(f"{key}={values}")
        choices = override.sweep_string_iterator() if override.is_sweep_override() else [values]
        for value in choices:
            if key in dict(OPTIONS):
                assert (key, value) in OPTIONS
            else:
                swept = OmegaConf.select(composed(f"{key}={value}"), key)
                assert str(swept).replace("'", "").replace(", ", ",") == value
