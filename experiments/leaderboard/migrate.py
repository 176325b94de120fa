"""Once: records of version 1 -> version 2 in the folder of today. Run from the root: migrate.py OLD_FOLDER"""
import json, sys, shlex, pathlib, collections
import pandas as pd
from experiments.setup.composing import composed
from experiments.setup.presets import row_names
from experiments.records import naming, published
from experiments.records.record import record_of, Record
OLD = pathlib.Path(sys.argv[1]); NEW = pathlib.Path(sys.argv[2])
STAGES = {"photos": 1, "class_images": 1, "protect": 2, "countermeasure": 1, "customize": 1, "gallery": 1, "eval": 1}
SCORERS = {
    "sface.safetensors": "a20bb424ccb61f1a22253576a6bc8a3ce2ac9505d9360ee75500be4f9c61be26",
    "brisque_live.safetensors": "d261b629a15ce350884b23e097ac16489eb093cd4e2981cc4cce09ab8675d055",
}
PLACES = ("output_dir=", "+output_dir=")
cache = {}
def choices_of(command):
    words = [w for w in shlex.split(command)[2:] if not w.startswith("hydra")]
    key = tuple(w for w in words if not w.startswith(("dataset.identities","tracker","output_dir","dataset.shard","seed","checkpoint")))
    if key not in cache:
        cache[key] = {k: v for k, v in composed(*words, with_hydra=True).hydra.runtime.choices.items()}
    return dict(cache[key])
names = {}
def experiment_of(r, command):
    for w in shlex.split(command):
        if w.startswith("experiment="): return w.split("=")[1]
    a = r["attack"]
    att = r["config"]["attack"]
    if r["adversary"] not in ("as_assumed", "other_model"): return "adverse"
    if r["clean_photos"]: return "uncontrolled"
    if att.get("transforms"): return "transforms"
    if r["countermeasure"] != "none": return "countermeasures"
    if r["customizer"] == "lora": return "benchmark_lora"
    if a in ("e_aspl", "e_fsmg", "e_aspl_released", "e_fsmg_released"): return "ensembles" if not a.endswith("released") else "methods"
    if r["adversary"] == "other_model": return "adverse"
    if a in ("noise", "fsmg", "aspl", "simac", "simac_released") and r["eps"] in (4, 8, 16): return "benchmark"
    if r["eps"] in (2, 12): return "budgets"
    return "methods"
out, frames, seen = {}, [], collections.Counter()
for f in sorted(OLD.glob("*.json")):
    r = json.load(open(f))
    c = r["config"]
    c["gallery"] = {"_target_": "anticustom.sampling.Gallery", **c["gallery"]}
    c["class_images"] = {"_target_": "anticustom.sampling.ClassImages", **c["class_images"], "batch_size": c["surrogate_model"]["gallery"]["batch_size"]}
    for node in (c["surrogate_model"], c["customizer"]["base_model"], *((c["attack"].get("others") or {}).values())):
        node.setdefault("class_images", {})["batch_size"] = node["gallery"]["batch_size"]
    c["tracker"] = {"_target_": c["tracker"]["_target_"].replace("experiments.tracking.", "experiments.run.tracking."), **{k: v for k, v in c["tracker"].items() if k != "_target_"}}
    assert c["output_dir"].startswith("outputs") or True
    c["output_dir"] = "outputs"
    words = shlex.split(r["command"]); words = [w for w in words if not w.startswith(PLACES)]
    command = shlex.join(words)
    choices = choices_of(r["command"])
    for key in ("dataset", "attack", "surrogate_model", "countermeasure", "adversary", "customizer"):
        assert choices[key] == r[key] , (f, key, choices[key], r[key])
    if r["loss"] != "none": assert choices["loss"] == r["loss"], (f, choices["loss"], r["loss"])
    digests = {**r["digests"]}; digests.setdefault("scorer", SCORERS)
    stages = r.get("stages", STAGES)
    machine = r["machine"]
    unknown = f"{machine.get('gpu') or machine.get('cpu')}, kind not recorded" if (machine.get('gpu') or machine.get('cpu')) else "not recorded"
    processors = r.get("processors") or dict.fromkeys(("protect", "protected", "unprotected"), unknown)
    key = json.dumps([{k: v for k, v in choices.items()}, c["attack"], naming.setting_parts(c)], sort_keys=True)
    if key not in names: names[key] = row_names(c, choices, "float32")
    method, details = names[key]
    row = naming.row_of(c, digests, stages)
    data = {
        "schema_version": 2, "name": f.stem,
        **{k: r[k] for k in ("dataset", "identity", "attack")}, "method": method, "eps": r["eps"],
        "surrogate_model": r["surrogate_model"], "base_model": c["customizer"]["base_model"]["name"],
        **{k: r[k] for k in ("countermeasure", "clean_photos", "adversary", "customizer")},
        "details": details, "row": row, "seed": r["seed"], "scorer": r["scorer"], "scores": r["scores"],
        "perceptibility": r["perceptibility"], "command": command, "experiment": experiment_of(r, command),
        "created_at": r["created_at"], "versions": r["versions"], "stages": stages,
        "made_with": r.get("made_with", {}), "machine": machine, "processors": processors,
        "loss": r["loss"], "timestep_policy": r["timestep_policy"], "photos": len(r["perceptibility"]["images"]),
        "config": c, "digests": digests, "seconds": r["seconds"], "peak_memory_bytes": r["peak_memory_bytes"],
    }
    record = record_of(data, str(f))
    out[record.name] = record
    seen[details, method] += 1
images = published.images_of(list(out.values()))
print(len(out), len(images), len(cache), len(names))
published.write_folder(out, images, NEW)
for (d, m), n in sorted(seen.items()): print(n, m, "|", d)
