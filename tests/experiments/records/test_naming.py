import time

from experiments.records.naming import configurations, differences
from experiments.records.record import STAGES
from experiments.run.stages import VERSIONS


def of(records):
    return configurations({str(i): record for i, record in enumerate(records)})


def test_seeds_and_identities_share_a_configuration(made_up):
    found = of([made_up(), made_up(seed=1), made_up(identity="7"), made_up(command="x")])
    assert len(set(found.values())) == 1
    assert found["0"].method == "simac"
    assert found["0"].setting.details == ""
    assert found["0"].eps == 8


def test_names_tell_settings_apart(made_up):
    lora = made_up(customizer="lora")
    jpeg = made_up(countermeasure="jpeg75", clean_photos=1, adversary="other_term")
    facenet = made_up(scorer={"backbone": "facenet"})
    found = of([made_up(), lora, jpeg, facenet, made_up(eps=4)])
    assert len(set(found.values())) == 5
    assert not any(one.setting.details for one in found.values())
    title = found["2"].setting.title
    assert "after jpeg75, 1 of the photos clean, other term, scored with sface" in title


def test_settings_under_equal_names_are_told_apart_by_what_differs(made_up):
    other = {"gallery": {"prompts": ["a photo"], "guidance_scale": 5}}
    longer = {"attack": {"_target_": "anticustom.attacks.pgd.PGD", "steps": 12}}
    found = of([made_up(), made_up(config=other), made_up(config=longer), made_up(attack="aspl")])
    # what is most common needs no words
    assert found["0"].setting.details == ""
    assert found["1"].setting.details == "gallery.guidance_scale=5"
    assert found["0"].method == "simac"
    assert found["2"].method == "simac (steps=12)"
    assert found["3"].method == "aspl"
    equal = of([made_up(), made_up(config=longer)])
    assert [one.method for one in equal.values()] == ["simac (steps=6)", "simac (steps=12)"]


def test_what_draws_and_scores_is_told_apart(made_up):
    def with_gallery(**settings):
        return {"gallery": {"images_per_prompt": 8, "steps": 20} | settings}

    def other_model(**settings):
        others = {"second": {"name": "tiny_b", **with_gallery(**settings)}}
        return {"attack": {"_target_": "PGD", "others": others}}

    plain = made_up(config={"surrogate_model": with_gallery()})
    fewer = made_up(config={"surrogate_model": with_gallery(steps=4, images_per_prompt=2)})
    digests = plain["digests"] | {"scorer": {"sface.safetensors": "other"}}
    found = of([plain, plain, fewer, plain | {"digests": digests}])
    assert [one.setting.details for one in found.values()] == [
        "",
        "",
        "class_images.surrogate_model.steps=4",
        "scorer.brisque_live.safetensors=none, scorer.sface.safetensors=other",
    ]
    ensembles = [made_up(config=other_model(steps=n)) for n in (20, 20, 4)]
    assert [one.method for one in of(ensembles).values()] == [
        "simac",
        "simac",
        "simac (attack.others.second.gallery.steps=4)",
    ]


def test_records_of_other_versions_of_a_stage_are_told_apart(made_up):
    old = made_up()  # from before versions were recorded
    same, protects, customizes = (
        made_up(stages=STAGES | changed) for changed in ({}, {"protect": 3}, {"customize": 2})
    )
    found = list(of([old, same, protects, customizes]).values())
    assert found[0] == found[1]
    assert found[2].method == "simac (stages.protect=3)"
    assert found[2].setting == found[0].setting
    assert found[3].setting.details == "stages.customize=2"


def test_the_versions_that_records_lack_are_of_every_stage():
    assert STAGES.keys() == VERSIONS.keys()


def test_each_tells_only_where_it_is_unlike_the_most_common(made_up):
    attack = {"_target_": "anticustom.attacks.pgd.PGD", "steps": 6, "step_size": 1}
    more = {"schedule": {"kind": "b", "rate": 3}}
    unlike = [attack | {"steps": 12}, attack | {"step_size": 2}, attack | more]
    found = of([made_up(config={"attack": one}) for one in (attack, attack, *unlike)])
    assert [one.method for one in found.values()][1:] == [
        "simac",
        "simac (steps=12)",
        "simac (step_size=2)",
        "simac (schedule.kind=b, schedule.rate=3)",
    ]
    lacking = {key: value for key, value in attack.items() if key != "steps"}
    found = of([made_up(config={"attack": one}) for one in (attack, attack, lacking)])
    assert found["2"].method == "simac (steps=none)"


def test_of_equally_common_ones_the_usual_is_that_which_the_others_vary(made_up):
    plain = {"_target_": "PGD", "steps": 6, "clip": 1, "order": "keep"}
    made = [plain, plain | {"steps": 12}, plain | {"clip": None}, plain | {"order": "restart"}]
    found = configurations({f"{k}": made_up(config={"attack": a}) for k, a in enumerate(made)})
    assert [of.method for of in found.values()] == [
        "simac",
        "simac (steps=12)",
        "simac (clip=null)",
        "simac (order=restart)",
    ]


def test_an_option_that_is_left_alone_says_nothing(made_up):
    plain = {"_target_": "PGD", "steps": 6, "transforms": [], "transform_samples": 1}
    made = [plain, plain | {"transforms": ["blur"]}]
    found = configurations({f"{k}": made_up(config={"attack": a}) for k, a in enumerate(made)})
    assert [of.method for of in found.values()] == [
        "simac",
        "simac (transforms=[blur])",
    ]


def test_an_option_that_some_have_in_use_is_told_even_of_the_most_common(made_up):
    plain = {"_target_": "PGD", "steps": 6, "transforms": [], "transform_samples": 1}
    blurred, purified = ({**plain, "transforms": [one]} for one in ("blur", "purify"))
    for counts in [(1, 1, 1), (2, 2, 2), (1, 3, 1)]:
        made = [
            one for k, one in zip(counts, (plain, blurred, purified), strict=True) for _ in range(k)
        ]
        found = of([made_up(config={"attack": one}) for one in made])
        assert set(one.method for one in found.values()) == {
            "simac",
            "simac (transforms=[blur])",
            "simac (transforms=[purify])",
        }
    everywhere = of([made_up(config={"attack": blurred | {"steps": k}}) for k in (6, 6, 12)])
    assert [one.method for one in everywhere.values()] == ["simac", "simac", "simac (steps=12)"]


def test_an_attack_that_has_no_purifier_does_not_say_so(made_up):
    plain = {"_target_": "PGD", "steps": 6, "transforms": [], "transform_samples": 1}
    digests = {"base_model": "ab", "surrogate_model": "ab"}
    made = [
        made_up(config={"attack": plain}, digests=digests),
        made_up(config={"attack": plain | {"transforms": ["blur"]}}, digests=digests),
        made_up(
            config={"attack": plain | {"transforms": ["purify"]}},
            digests=digests | {"attack.purifier": "0123456789abcdef" * 4},
        ),
    ]
    assert [one.method for one in of(made).values()] == [
        "simac",
        "simac (transforms=[blur])",
        "simac (attack.purifier=01234567, transforms=[purify])",
    ]


def test_an_object_is_told_by_its_class_unless_its_settings_are_what_differs(made_up):
    attack = {"_target_": "anticustom.attacks.pgd.PGD", "steps": 6}
    part = {"_target_": "anticustom.adapters.Adapters", "rank": 4}
    one, other = (attack | {"part": part | more} for more in ({}, {"rank": 8}))
    found = of([made_up(config={"attack": a}) for a in (attack, attack, one)])
    assert found["2"].method == "simac (part=Adapters)"
    found = of([made_up(config={"attack": a}) for a in (attack, one)])
    assert [found[k].method for k in "01"] == ["simac (part=none)", "simac (part=Adapters)"]
    found = of([made_up(config={"attack": a}) for a in (attack, attack, one, other)])
    assert found["2"].method == "simac (part=Adapters, part.rank=4)"
    assert found["3"].method == "simac (part=Adapters, part.rank=8)"


def test_a_loss_is_told_by_its_name(made_up):
    config = {
        "attack": {"_target_": "anticustom.attacks.pgd.PGD", "loss": {"_target_": "a", "w": 1}}
    }
    plain = {"attack": {"_target_": "anticustom.attacks.pgd.PGD", "loss": {"_target_": "b"}}}
    found = of([made_up(config=config), made_up(loss="denoising", config=plain)])
    assert [one.method for one in found.values()] == [
        "simac (loss=feature_interference)",
        "simac (loss=denoising)",
    ]


def test_other_weights_are_another_setting(made_up):
    some, others = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    made = [made_up(digests={"base_model": one, "surrogate_model": some}) for one in (some, others)]
    details = [one.setting.details for one in of(made).values()]
    assert details == ["weights.base_model=01234567", "weights.base_model=fedcba98"]


def test_equal_numbers_are_equal_and_long_values_are_short(made_up):
    whole = {"gallery": {"prompts": ["a photo"], "guidance_scale": 5.0}}
    same = {"gallery": {"prompts": ["a photo"], "guidance_scale": 5}}
    long = {"gallery": {"prompts": ["a photo of sks person " * 5], "guidance_scale": 5}}
    found = of([made_up(config=whole), made_up(config=same), made_up(config=long)])
    assert found["0"] == found["1"] != found["2"]
    assert len(found["2"].setting.details) < 60


def test_an_option_that_came_later_and_is_not_in_use_tells_nothing_apart(made_up):
    attack = {"_target_": "anticustom.attacks.pgd.PGD", "steps": 6}
    later = {"attack": attack | {"draws_per_step": 1, "transforms": [], "transform_samples": 1}}
    used = {"attack": attack | {"draws_per_step": 4, "transforms": [], "transform_samples": 1}}
    found = of([made_up(config={"attack": attack}), made_up(config=later), made_up(config=used)])
    assert found["0"] == found["1"]
    assert found["2"].method == "simac (draws_per_step=4)"


def test_time_grows_with_the_number_of_methods_alone():
    """Of many methods that all differ, each is compared with what all have, not with each other."""

    def took(count: int) -> float:
        details = [{"a": {"b": str(k)}, "c": str(k % 7)} for k in range(count)]
        found = []
        for _ in range(3):  # the collector walks over all that other tests left, now and then
            started = time.process_time()
            words = differences(details)
            found.append(time.process_time() - started)
            assert len(set(words)) == count
        return min(found)

    took(10)
    assert took(4000) < 20 * max(took(400), 0.005)  # quadratic would be 100 times
