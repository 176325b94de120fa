"""The dry step: whether stages fit the memory of a device, tried before any long work."""

import weakref
from dataclasses import replace

import pytest
import torch
from runs import job_of, protected, snapshot

from anticustom import model_files
from anticustom.attacks.pgd import PGD
from anticustom.customizers.dreambooth import DreamBooth
from anticustom.diffusion import LatentDiffusion
from anticustom.sampling import KARRAS_SAMPLERS, SAMPLERS
from experiments.run import dry_step, pipeline
from experiments.run.dry_step import check_memory, shortened_attack
from experiments.run.pipeline import stages_of
from experiments.setup.building import Refused, build_group
from experiments.setup.composing import composed

SHORT = ["customizer.training.prior_weight=0", "tracker=none"]
ADVDM = ("attack=advdm", "attack.steps=1")


@pytest.fixture
def stages(miniature, tmp_path):
    """Make the stages of a short job on the CPU; keyword `folder` names its output_dir."""

    def make(*words: str, attack=ADVDM, folder="out"):
        out = f"output_dir={tmp_path / folder}"
        return stages_of(job_of(*miniature, *SHORT, *attack, out, *words))

    return make


def first(stages):
    return stages.job.dataset.read(stages.job.names[0], stages.job.size)


def lacks_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


ATTACK, CUSTOMIZER = (PGD, "__call__"), (DreamBooth, "customize")
GALLERY = (LatentDiffusion, "sample")


@pytest.mark.parametrize(
    ("place", "words", "line"),
    [
        (ATTACK, [], "attack=advdm does not fit the memory of cpu: run with memory=24gb"),
        (ATTACK, ["memory=24gb"], "attack=advdm .*: run with memory=12gb"),
        (ATTACK, ["memory=12gb"], "attack=advdm .*: no preset takes less than 12gb"),
        (CUSTOMIZER, [], "customizer=dreambooth .* memory=24gb, or with customizer=lora"),
        (GALLERY, [], "the gallery .* memory=24gb, or with a lower gallery.batch_size"),
    ],
)
def test_the_next_smaller_preset_is_named(stages, monkeypatch, place, words, line):
    monkeypatch.setattr(*place, lacks_memory)
    run = stages(*words)
    with pytest.raises(Refused, match=f"^{line}$"):
        check_memory(run, first(run))


def test_results_that_are_there_are_not_tried_again_unless_forced(stages, monkeypatch):
    def refused(*words: str) -> bool:
        run = stages(*words)
        try:
            check_memory(run, first(run))
        except Refused:
            return True
        return False

    pipeline.run(stages("stages=[protect]").job)
    monkeypatch.setattr(*ATTACK, lacks_memory)
    assert not refused("stages=[protect]")
    assert not refused()
    assert refused("stages=[protect]", "force=[protect]")
    monkeypatch.setattr(*CUSTOMIZER, lacks_memory)
    assert refused()
    assert not refused("stages=[eval]")
    monkeypatch.undo()
    pipeline.run(stages("stages=[customize]").job)
    for place in (ATTACK, CUSTOMIZER, GALLERY):
        monkeypatch.setattr(*place, lacks_memory)
    assert not refused()
    assert refused("gallery.steps=3")


def test_a_dry_step_changes_nothing(stages, aspl):
    plain, tried = (stages("customizer=lora", attack=aspl, folder=folder) for folder in ("a", "b"))
    state = torch.get_rng_state()
    check_memory(tried, first(tried))
    assert torch.equal(torch.get_rng_state(), state)
    assert snapshot(tried.job.output_dir) == {}
    for run in (plain, tried):
        pipeline.run(replace(run.job, config=run.job.config | {"stages": ["protect", "customize"]}))
    assert protected(plain.job.output_dir) == protected(tried.job.output_dir)
    galleries = [
        sorted(file.read_bytes() for file in run.job.output_dir.glob("store/gallery/**/*.png"))
        for run in (plain, tried)
    ]
    assert galleries[0] == galleries[1] != []


def test_a_run_on_a_gpu_alone_is_tried_before_any_long_work(stages, monkeypatch):
    def refuse(stages, identity):
        raise Refused(f"no memory for {identity.name}")

    monkeypatch.setattr(pipeline, "check_memory", refuse)
    job = stages("stages=[protect]", attack=["attack=noise"]).job
    pipeline.run(job)
    with pytest.raises(Refused, match=r"^no memory for 0$"):
        pipeline.run(replace(job, device="cuda:0"))


@pytest.mark.parametrize("error", [ValueError, FloatingPointError])
def test_other_failures_are_left_to_the_run(stages, monkeypatch, error):
    def fail(*_, **__):
        raise error("the loss is not finite")

    for place in (ATTACK, CUSTOMIZER, GALLERY):
        monkeypatch.setattr(*place, fail)
    run = stages()
    check_memory(run, first(run))


def test_memory_of_an_earlier_job_is_freed_before_a_step(monkeypatch):
    """Memory in the cache of torch, or in objects that hold each other."""

    class Left:
        def __init__(self):
            self.itself = self

    left, freed = weakref.ref(Left()), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(left() is None))
    assert dry_step._fits(lambda: freed.append("step"))
    assert freed == [True, "step"]


@pytest.mark.parametrize("name", ["noise", "advdm", "fsmg", "aspl", "simac", "simac_fast"])
def test_an_attack_is_shortened_to_two_iterations_of_a_step(name):
    attack = build_group(composed(f"attack={name}"), "attack")
    short = shortened_attack(attack)
    if name == "noise":
        assert short == attack
        return
    schedule = short.surrogate_schedule
    assert (short.steps, schedule.iterations) == (1, min(2, attack.surrogate_schedule.iterations))
    assert getattr(schedule, "training_steps", 2) == 2
    if "simac" in name:
        assert short.timestep_policy.max_rounds == 1
    assert replace(short, steps=attack.steps, timestep_policy=attack.timestep_policy) == replace(
        attack, surrogate_schedule=schedule
    )


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_every_sampler_can_draw_in_so_few_steps(random_sd, scheduler):
    model = model_files.load(str(random_sd))
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    karras = scheduler in KARRAS_SAMPLERS
    settings = {"guidance_scale": 7.5, "scheduler": scheduler, "karras_sigmas": karras}
    images = model.sample(
        "a photo", noise, steps=dry_step.SAMPLER_STEPS, callback=lambda: None, **settings
    )
    assert images.isfinite().all()
