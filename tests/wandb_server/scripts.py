"""What the processes of test_server.py run: plain uses of the real SDK."""

TRAIN = """
import json, pathlib, wandb
run = wandb.init(project="p", id="t1", name="trainer", group="g", job_type="train", tags=["a", "b"], config={"lr": 0.1})
run.define_metric("val/*", step_metric="train/global_step")
folder = pathlib.Path("checkpoint")
folder.mkdir()
for n in range(3):
    run.log({"loss": 1 / (n + 1), "val/mrr": n, "train/global_step": n * 10})
    (folder / "model.safetensors").write_bytes(bytes([n]) * 5000)
    (folder / "config.json").write_text("{}")
    version = wandb.Artifact("model-t1", "model", metadata={"train/global_step": n * 10})
    version.add_dir(str(folder))
    run.log_artifact(version, aliases=[f"checkpoint_global_step_{n * 10}"]).wait()
run.log({"queries": wandb.Table(columns=["id", "value"], data=[["q1", 1.0], ["q2", 0.5]])})
run.alert("title", "text")
run.summary["best"] = 3
run.finish()
"""
READ = """
import json, pathlib, wandb
run = wandb.init(project="p", id="e1", job_type="validate")
used = run.use_artifact("model-t1:checkpoint_global_step_10")
run.finish()
api = wandb.Api()
trainer = api.run("tester/p/t1")
versions = list(api.artifacts("model", "tester/p/model-t1", per_page=2))
names = [version.name for version in versions]
steps = [version.metadata["train/global_step"] for version in versions]
folder = pathlib.Path(api.artifact("tester/p/model-t1:latest").download(root="latest", skip_cache=True))
files = {path.name: path.read_bytes().hex() for path in folder.iterdir()}
queries = trainer.logged_artifacts()[3].get("queries").data
types = sorted(kind.name for kind in api.artifact_types("tester/p"))
collections = [c.name for c in api.artifact_type("model", "tester/p").collections()]
used_by = [r.id for r in api.artifact("tester/p/model-t1:v1").used_by()]
author = versions[0].logged_by().id
rows = [row["loss"] for row in trainer.scan_history(keys=["loss"])]
runs = [r.id for r in api.runs("tester/p", filters={"jobType": "train"})]
missing = []
for call in (lambda: api.artifact("tester/p/model-t1:nope"), lambda: list(api.runs("tester/nope"))):
    try:
        call()
    except Exception as problem:
        missing.append(type(problem).__name__)
facts = "names steps files queries types collections used_by author rows runs missing".split()
print(json.dumps({name: globals()[name] for name in facts} | {"state": trainer.state, "best": trainer.summary["best"]}))
"""
EDIT = """
import json, wandb
def version(run, content, **more):
    artifact = wandb.Artifact("model", "model", metadata={"n": content})
    with artifact.new_file("weights") as stream:
        stream.write(content)
    return run.log_artifact(artifact, **more).wait()
with wandb.init(project="p", id="t") as run:
    first, second, again = version(run, "one"), version(run, "two"), version(run, "one", aliases=["again"])
api = wandb.Api()
second = api.artifact("tester/p/model:v1")
second.aliases.append("best")
second.metadata["score"] = 1
second.save()
second.link("tester/p/shelf", aliases=["prod"])
linked = api.artifact("tester/p/shelf:prod")
problem = ""
try:
    api.artifact("tester/p/model:v1").delete()
except Exception as refused:
    problem = str(refused)
print(json.dumps([again.version, again.aliases, again.metadata, linked.source_name, problem]))
"""
LOG = """
import os, wandb
with wandb.init(project="p", id=os.environ.get("RUN_NAME", "t"), config={"lr": 1}) as run:
    for n in range(4):
        run.log({"loss": n})
    artifact = wandb.Artifact("model", "model")
    with artifact.new_file("weights", "wb") as stream:
        stream.write(bytes(range(200)) * 100)
    run.log_artifact(artifact)
"""
RESUME = """
import json, os, wandb
problems = []
with wandb.init(project="p", id="r", resume="allow", config={"part": int(os.environ["PART"])}, tags=["x"]) as run:
    first = run.starting_step
    for n in range(3):
        run.log({"loss": n})
for resume, name in (("must", "missing"), ("never", "r")):
    try:
        wandb.init(project="p", id=name, resume=resume)
    except Exception as problem:
        problems.append(type(problem).__name__)
print(json.dumps([first, problems]))
"""
DAMAGED = """
import json, pathlib, wandb
outcomes = []
for n in range(5):
    artifact = wandb.Api().artifact("tester/p/model:v0")
    try:
        path = artifact.download(root=str(n), skip_cache=True)
        outcomes.append(pathlib.Path(path, "weights").read_bytes().hex())
        pathlib.Path(path, "weights").unlink()
        for cached in pathlib.Path(__import__("os").environ["WANDB_CACHE_DIR"]).rglob("obj/**/*"):
            cached.is_file() and cached.unlink()
    except Exception as problem:
        outcomes.append(type(problem).__name__)
print(json.dumps(outcomes))
"""
REJECTED = """
import json, wandb
problems = []
for call in (wandb.Api, lambda: wandb.init(project="p")):
    try:
        call()
    except Exception as problem:
        problems.append(type(problem).__name__)
print(json.dumps(problems))
"""
OUTAGE = """
import wandb
run = wandb.init(project="p", id="t", settings=wandb.Settings(x_file_stream_transmit_interval=1))
def version(content):
    artifact = wandb.Artifact("model", "model")
    with artifact.new_file("weights") as stream:
        stream.write(content)
    return run.log_artifact(artifact)
for part in range(2):
    for n in range(3):
        run.log({"loss": part * 3 + n})
    print("logged", flush=True)
    logged = version(str(part))
    if part == 0:
        logged.wait()
        print("uploaded", flush=True)
        input()
run.finish()
"""
SHARED = """
import os, wandb
first = os.environ["PART"] == "first"
settings = wandb.Settings(mode="shared", x_primary=first, x_update_finish_state=first)
run = wandb.init(project="p", id="s", settings=settings, config={os.environ["PART"]: 1})
for n in range(3):
    run.log({os.environ["PART"]: n})
if first:
    print("ready", flush=True)
    input()
run.finish()
"""
SYNC = """
import glob, subprocess, sys
folder, = glob.glob("wandb/offline-run-*")
subprocess.run([sys.executable, "-m", "wandb", "sync", folder], check=True, stdout=subprocess.DEVNULL)
"""
