"""A real SLURM of one node: its daemons are started in a folder of their own, and stopped by their process ids."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
ACCOUNTING = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")
"""Where sacct looks for munge, whatever slurm.conf says."""

CONF = """\
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
OverTimeLimit=0
MinJobAge={min_job_age}
SlurmctldTimeout=30
SlurmdTimeout=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=1-00:00:00 DefaultTime=60 State=UP
PartitionName=down Nodes={host} MaxTime=INFINITE State=DOWN
"""
WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[2]}
AccountingStorageEnforce=associations
"""
DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={ports[2]}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[3]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def missing(accounting: bool) -> str:
    """Why no SLURM can be started here, or an empty text."""
    if os.geteuid() != 0:
        return "SLURM is started by root only"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    absent = [name for name in PROGRAMS + ACCOUNTING * accounting if not shutil.which(name, path=path)]
    packages = "slurm-wlm munge" + " slurmdbd mariadb-server" * accounting
    return f"no {', '.join(absent)}: apt-get install {packages}" if absent else ""


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until something holds, and fail with `what` where it does not come in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to any connection, which might take one before its daemon does."""
    free: list[int] = []
    for port in random.sample(range(10000, 32000), 500):
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            break
    return free


class Cluster:
    """munged, slurmctld and slurmd of one node, with slurmdbd and its data base where jobs are accounted for.

    Args:
        folder: for all that they write; a short path, since sockets lie in it.
        min_job_age: for how many seconds a job that has ended is remembered by the controller.
    """

    def __init__(self, folder: Path, *, accounting: bool = False, min_job_age: int = 300):
        self.folder, self.accounting = folder, accounting
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._linked = False
        words = {"folder": folder, "ports": _free_ports(4), "host": socket.gethostname().split(".")[0]}
        self._ports: list[int] = words["ports"]  # type: ignore[assignment]
        text = CONF + WITH_ACCOUNTING * accounting
        (folder / "slurm.conf").write_text(text.format(**words, min_job_age=min_job_age))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        # Not used, but by default slurmd looks for cgroups, and does not start in a container without them.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "slurmdbd.conf").write_text(DBD_CONF.format(**words))
        (folder / "slurmdbd.conf").chmod(0o600)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin",
        }

    def start(self) -> None:
        """Start all daemons, and come back when the node takes jobs."""
        folder = self.folder
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": key, **{f"{kind}-file": folder / f"munge.{kind}" for kind in ("pid", "log", "seed")}}
        options = [f"--{name}={path}" for name, path in files.items()]
        self.run("munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *options)
        until((folder / "munge.socket").exists, 10, "munge's socket")
        if self.accounting:
            self._start_accounting()
        self.controller()
        self.node()
        until(lambda: "idle" in self.says("sinfo", "-h", "-p", "short", "-o", "%T"), 30, "an idle node")

    def _start_accounting(self) -> None:
        folder = self.folder
        MUNGE_SOCKET.parent.mkdir(parents=True, exist_ok=True)
        if not MUNGE_SOCKET.exists():
            MUNGE_SOCKET.unlink(missing_ok=True)  # of a cluster that is gone
            MUNGE_SOCKET.symlink_to(folder / "munge.socket")
            self._linked = True
        data, database = folder / "database", folder / "database.socket"
        install = [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
        ]
        subprocess.run([*install, "--user=root", "--skip-test-db"], check=True, capture_output=True)
        place = [f"--datadir={data}", f"--socket={database}", f"--port={self._ports[3]}", "--bind-address=127.0.0.1"]
        small = ["--innodb-buffer-pool-size=64M", "--skip-name-resolve", f"--pid-file={folder / 'database.pid'}"]
        self.run("mariadbd", "--no-defaults", "--user=root", *place, *small)
        client = ["mariadb", "--no-defaults", f"--socket={database}", "--user=root", "-e"]
        user = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'"
        until(lambda: self.succeeds(*client, "select 1"), 60, "the data base")
        subprocess.run([*client, user], check=True)
        self.run("slurmdbd", "-D")
        account = ["sacctmgr", "--immediate", "add"]
        until(lambda: self.succeeds(*account, "cluster", "tiny"), 60, "slurmdbd")
        self.says(*account, "account", "lab", "cluster=tiny")
        self.says(*account, "user", "root", "account=lab")

    def controller(self) -> None:
        """Start the controller, which goes on with what it knew."""
        self.run("slurmctld", "-D")

    def node(self) -> None:
        """Start the node's daemon; what jobs run stays."""
        self.run("slurmd", "-D")

    def run(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [name, *options], env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one daemon."""
        self.processes[name].send_signal(number)
        self.processes.pop(name).wait(timeout=60)

    def succeeds(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment, capture_output=True).returncode == 0

    def says(self, *command: str) -> str:
        """What a command of SLURM's prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def stop(self) -> None:
        """End all jobs and all daemons, the last started first."""
        if "slurmctld" in self.processes:
            self.says("scancel", "--user=root")
            until(lambda: not self.says("squeue", "-h", "-o", "%i"), 30, "an empty queue")
        for name in reversed(list(self.processes)):
            self.kill(name, signal.SIGTERM)
        if self._linked:
            MUNGE_SOCKET.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # of the system's own munge
                MUNGE_SOCKET.parent.rmdir()
