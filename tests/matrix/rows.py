"""The rows of the matrix: each is a system, and the tests that concern it.

A row is set up by lines of ``sh`` in a mount, a process and a network namespace of its own, as root. They find in the
environment ``WORK``, an empty directory; ``A`` and ``B``, two directories in it that can be mounted on; and ``PYTHON``.
They call ``unavailable REASON`` if this machine cannot do it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

HERE = "here"  # this machine's own files; other systems are releases of Debian

_BASE_PATH = "tests/matrix/test_base_path.py"
_LOCAL = "tests/engines/test_contract_local.py"
_MANAGER = ("tests/manager/test_promises.py", "tests/manager/test_robustness.py")
_AS_USER = f"{_LOCAL}::test_as_an_ordinary_user"  # there are rows for that


@dataclass(frozen=True)
class Row:
    """A system, and the tests that concern it.

    :param what: what it is, for the table.
    :param tests: words for pytest.
    :param system: whose files it has: a release of Debian, or :data:`HERE`.
    :param packages: of Debian.
    :param setup: lines of ``sh`` that come before the tests.
    :param version: a line of ``sh`` that prints which version was found.
    :param before: words of a command that runs the tests.
    :param environment: more variables of the tests.
    :param programs: needed by the quick form, which uses those of this machine.
    :param quick: words for pytest; these tests take seconds, and are in the ordinary suite too. Empty: none are.
    :param note: what a user should know although the tests pass, or why they do not.
    :param reason: why this row cannot be had.
    """

    name: str
    group: str
    what: str
    tests: tuple[str, ...] = ()
    system: str = HERE
    packages: tuple[str, ...] = ()
    setup: str = ""
    version: str = "true"
    before: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    note: str = ""
    reason: str = ""

    @property
    def takes(self) -> str:
        """How long it takes."""
        return "seconds" if self.quick else "long"


_KERNEL = "echo Linux $(uname -r | cut -d - -f 1)"


def _package(name: str) -> str:
    return f"dpkg-query --show --showformat '{name} ${{Version}}' {name}"


def _shell(name: str, package: str, program: str, *but: str, note: str = "", quick: bool = False) -> Row:
    contract = (f"{_LOCAL}::TestLocal",)
    return Row(
        f"sh-{name}",
        "`/bin/sh`",
        f"{name} as `/bin/sh`",
        (_LOCAL, *_MANAGER, *(f"--deselect={test}" for test in (_AS_USER, *but))),
        system="bookworm",
        packages=(package,),
        setup=f'mount --bind "$(readlink -f "$(command -v {program})")" /bin/sh',
        version=_package(package),
        programs=(program,) if quick else (),
        quick=contract if quick else (),
        note=note,
    )


SHELLS = (
    _shell("dash", "dash", "dash"),
    _shell("bash", "bash", "bash", quick=True),
    _shell("busybox", "busybox-static", "busybox", quick=True),
    _shell("mksh", "mksh", "mksh"),
    _shell(
        "yash",
        "yash",
        "yash",
        "tests/manager/test_robustness.py::TestOddFiles::test_a_path_that_is_not_utf8",
        note="if `PATH` holds a byte that is not valid in the locale, yash finds no command, and tasks end as `lost`",
    ),
    _shell("ksh93", "ksh93u+m", "ksh93"),
    _shell("zsh", "zsh", "zsh"),
)

_SSHD = """\
mkdir -p /run/sshd "$WORK/served"
for name in host user; do ssh-keygen -q -t ed25519 -N '' -f "$WORK/$name"; done
/usr/sbin/sshd -f /dev/null -h "$WORK/host" -p 2222 -o ListenAddress=127.0.0.1 -o PidFile=none -o StrictModes=no \\
  -o AuthorizedKeysFile="$WORK/user.pub" -o Subsystem='sftp internal-sftp'
"""
_GLUSTERD = """\
truncate -s 1G "$WORK/image"; mkfs.ext4 -q "$WORK/image"
mkdir "$WORK/brick"; mount -o loop "$WORK/image" "$WORK/brick"
for place in /var/lib/glusterd /var/log/glusterfs; do mkdir -p $place; mount -t tmpfs tmpfs $place; done
mkdir -p /var/log/glusterfs/bricks /run/gluster
glusterd
for second in $(seq 60); do gluster --mode=script volume list >/dev/null 2>&1 && break; sleep 1; done
gluster --mode=script volume create served 192.0.2.1:"$WORK/brick/served" force
gluster --mode=script volume start served
"""


def _file_system(
    name: str,
    mount: str,
    *packages: str,
    once: str = "",
    two: bool = False,
    quick: bool = False,
    programs: tuple[str, ...] = (),
    note: str = "",
) -> Row:
    """A base path on a file system.

    :param mount: a line of ``sh`` that mounts it on ``$1``.
    :param packages: the first one has the version that is told; without one it is that of the kernel.
    :param once: lines that come before.
    :param two: whether the manager has a mount of its own.
    """
    tests = (_BASE_PATH,)
    places = ("$A", "$B") if two else ("$A",)
    return Row(
        f"{name}-two-mounts" if two else name,
        "File system of the base path",
        f"{name}, the manager on a mount of its own" if two else name,
        tests,
        system="bookworm",
        packages=packages,
        setup="\n".join(
            [
                f'on() {{\n{mount}\nmountpoint -q "$1"\n}}',
                once,
                *(f'on "{place}"' for place in places),
                f'export AIR_EXECUTOR_TEST_BASE_PATHS="{":".join(places)}"',
            ]
        ),
        version=_package(packages[0]) if packages and "mkfs" not in mount else _KERNEL,
        programs=programs,
        quick=tests if quick else (),
        note=note,
    )


def _image(kind: str) -> str:
    return f'truncate -s 1G "$WORK/image"; mkfs.{kind} -q "$WORK/image"; mount -o loop "$WORK/image" "$1"'


_TMPFS = 'mount -t tmpfs -o size=1G tmpfs "$1"'
_OVERLAY = """\
mkdir "$WORK/layers"; mount -t tmpfs tmpfs "$WORK/layers"; (cd "$WORK/layers"; mkdir lower upper work)
mount -t overlay -o lowerdir="$WORK/layers/lower,upperdir=$WORK/layers/upper,workdir=$WORK/layers/work" overlay "$1\""""
_SERVED = 'mkdir "$WORK/served"'
_BINDFS = 'bindfs "$WORK/served" "$1"'
_MERGERFS = 'mergerfs -o minfreespace=0 "$WORK/served" "$1"'
_GOCRYPTFS = 'gocryptfs -q -sharedstorage -extpass \'echo secret\' "$WORK/served" "$1"'
_NEW_GOCRYPTFS = f"{_SERVED}; gocryptfs -q -init -extpass 'echo secret' \"$WORK/served\""
_SSHFS = (
    'sshfs -p 2222 -o IdentityFile="$WORK/user",StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null{} '
    '127.0.0.1:"$WORK/served" "$1"'
)
_GLUSTERFS = 'mount -t glusterfs 192.0.2.1:/served "$1"'

FILE_SYSTEMS = (
    _file_system("ext4", _image("ext4"), "e2fsprogs", quick=True, programs=("mkfs.ext4",)),
    _file_system("xfs", _image("xfs"), "xfsprogs"),
    _file_system("btrfs", _image("btrfs"), "btrfs-progs"),
    _file_system("overlayfs", _OVERLAY, quick=True),
    _file_system("tmpfs", _TMPFS, quick=True),
    _file_system("bindfs", _BINDFS, "bindfs", once=_SERVED),
    _file_system(
        "bindfs",
        _BINDFS,
        "bindfs",
        once=_SERVED,
        two=True,
        quick=True,
        programs=("bindfs",),
    ),
    _file_system("mergerfs", _MERGERFS, "mergerfs", once=_SERVED),
    _file_system("mergerfs", _MERGERFS, "mergerfs", once=_SERVED, two=True),
    _file_system("gocryptfs", _GOCRYPTFS, "gocryptfs", once=_NEW_GOCRYPTFS),
    _file_system("gocryptfs", _GOCRYPTFS, "gocryptfs", once=_NEW_GOCRYPTFS, two=True),
    _file_system("sshfs", _SSHFS.format(""), "sshfs", "openssh-server", once=_SSHD),
    _file_system(
        "sshfs",
        _SSHFS.format(""),
        "sshfs",
        "openssh-server",
        once=_SSHD,
        two=True,
        note="its default caches are up to 20 s behind: news of another mount take as long",
    ),
    _file_system(
        "sshfs-without-caches",
        _SSHFS.format(",dcache_timeout=0,attr_timeout=0,entry_timeout=0,negative_timeout=0"),
        "sshfs",
        "openssh-server",
        once=_SSHD,
        two=True,
    ),
    _file_system("glusterfs", _GLUSTERFS, "glusterfs-server", "glusterfs-client", "e2fsprogs", once=_GLUSTERD),
    _file_system(
        "glusterfs",
        _GLUSTERFS,
        "glusterfs-server",
        "glusterfs-client",
        "e2fsprogs",
        once=_GLUSTERD,
        two=True,
    ),
    _file_system(
        "rclone",
        'rclone mount --daemon --vfs-cache-mode writes :local:"$WORK/served" "$1"',
        "rclone",
        "fuse3",
        once=_SERVED,
        note="a mount of an object store shows files that are empty",
    ),
    Row(
        "nfs",
        "File system of the base path",
        "NFS 4.2, and NFS 3 with `nolock`, two clients: a kernel's own, in a virtual machine",
        ("tests/manager/test_nfs.py::test_in_a_virtual_machine", "tests/matrix/test_base_path_on_nfs.py"),
        setup='command -v linux.uml >/dev/null || unavailable "its kernel is installed by make virtual-machine"',
        version="linux.uml --version | sed 's/^/Linux /'",
    ),
)

_ENGINES_ELSEWHERE = ("slurm", "kubernetes", "kubernetes_attached", "memory_groups")
_WITHOUT_CLUSTERS = (
    *("--hypothesis-profile=fast", "tests/jobs", "tests/manager", "tests/engines"),
    f"--deselect={_AS_USER}",
    *(f"--ignore=tests/engines/test_{name}.py" for name in _ENGINES_ELSEWHERE),
)


def _python(version: str, system: str) -> Row:
    return Row(
        f"python-{version}",
        "Python",
        f"Python {version}, without Airflow",
        _WITHOUT_CLUSTERS,
        system=system,
        packages=("openssh-server",),
        version='"$PYTHON" --version',
    )


PYTHONS = (
    _python("3.11", "bookworm"),
    _python("3.12", "python-3.12"),
    _python("3.13", "trixie"),
    _python("3.14", "sid"),
)

_UNKNOWN = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")  # it has no entry in /etc/passwd
_WHERE_A_USER_WORKS = (f"{_LOCAL}::TestLocal", f"{_LOCAL}::TestWarm", *_MANAGER, _BASE_PATH)
_AS_PROCESS_1 = (
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)  # pytest waits for its own children alone
_CONTAINER = """\
mount -o remount,ro,bind /
umount /dev/shm
mount -t tmpfs -o ro,size=4k tmpfs /dev/shm
"""

USERS = (
    Row(
        "user-without-home",
        "Users and containers",
        "a user id without an account, home, session or capability, who may write to the base path and `/tmp` only",
        _WHERE_A_USER_WORKS,
        system="bookworm",
        before=(*_UNKNOWN, "--inh-caps=-all", "env", "HOME=/nonexistent"),
        version=_KERNEL,
    ),
    Row(
        "container",
        "Users and containers",
        "the same as in a container: process 1 is no init, the root is read-only, nothing fits into `/dev/shm`",
        _WHERE_A_USER_WORKS,
        system="bookworm",
        setup=_CONTAINER,
        before=(*_AS_PROCESS_1, *_UNKNOWN, "--inh-caps=-all", "env", "HOME=/nonexistent"),
        version=_KERNEL,
    ),
)

_SLURM = "tests/engines/test_slurm.py"
_SLURM_PACKAGES = ("slurm-wlm", "munge")
_SITE_PACKAGES = ("slurmdbd", "mariadb-server-core", "mariadb-client-core")

# What a site puts before Slurm's own commands: they greet everybody, count hours, and write their own comment.
_SITE_COMMANDS = """\
mkdir "$WORK/site"
cat >"$WORK/site/sbatch" <<'END'
#!/bin/sh
echo "** Welcome. The maintenance is on Monday. **" >&2
echo "Your account has 4711 hours left in 2027."
number=$(/usr/bin/sbatch "$@") || exit
/usr/bin/scontrol update JobId="${number%%;*}" Comment="charged to: physics" >/dev/null 2>&1
echo "$number"
END
for name in squeue scancel scontrol sacct sstat sinfo; do
cat >"$WORK/site/$name" <<END
#!/bin/sh
echo "** Welcome. The maintenance is on Monday. **" >&2
exec /usr/bin/$name "\\$@"
END
done
chmod 755 "$WORK/site" "$WORK"/site/*
export PATH="$WORK/site:$PATH"
"""


def _slurm(version: str, system: str, *, no_site: str = "") -> tuple[Row, ...]:
    """Its rows.

    :param no_site: why a cluster as sites have it cannot be had.
    """
    own = {
        "AIR_EXECUTOR_TEST_SLURM_AUTHENTICATION": "slurm",
        "AIR_EXECUTOR_TEST_SLURM_CONFIG": "EnforcePartLimits=ALL;PrologFlags=Alloc;LaunchParameters=test_exec",
    }
    munge = Row(
        f"slurm-{version}",
        "Slurm",
        f"Slurm {version} with munge",
        (_SLURM, "-k", "not TestSite"),
        system=system,
        packages=_SLURM_PACKAGES,
        setup="mkdir -p /run/slurm /run/slurmctld",
        version=_package("slurmctld"),
    )
    site = dataclasses.replace(
        munge,
        name=f"slurm-{version}-site",
        what=f"Slurm {version} with control groups (version 1), slurmdbd and MariaDB, limits, and a prolog",
        tests=() if no_site else (_SLURM, "-k", "TestSite"),
        packages=(*_SLURM_PACKAGES, *_SITE_PACKAGES),
        reason=no_site,
    )
    return (
        munge,
        site,
        dataclasses.replace(
            munge,
            name=f"slurm-{version}-auth-slurm",
            what=f"Slurm {version} with auth/slurm, `EnforcePartLimits`, `PrologFlags` and `LaunchParameters`",
            # A second cluster of the machine would take the place of the socket that programs ask for their identity.
            tests=(_SLURM, "-k", "not TestSite and not ordinary_user and not shell_is_bash"),
            environment=own,
        ),
    )


_NO_DATABASE = "slurmdbd does not start with libmariadb 11.8.9 of the same release (error 5027 at its first query)"

SLURM = (
    *_slurm("22.05", "bookworm")[:2],  # it has no auth/slurm
    dataclasses.replace(
        _slurm("22.05", "bookworm")[0],
        name="slurm-22.05-site-commands",
        what="the same behind a site's own commands, which print a banner, and put their comment in place of ours",
        # One test itself plays a site that writes a comment.
        tests=(_SLURM, "-k", "not TestSite", f"--deselect={_SLURM}::test_a_site_that_writes_its_own_comment"),
        setup=f"mkdir -p /run/slurm /run/slurmctld\n{_SITE_COMMANDS}",
    ),
    *_slurm("24.11", "trixie", no_site=_NO_DATABASE),
    *_slurm("26.05", "sid", no_site=_NO_DATABASE),
)

_KUBERNETES_BUILT = '[ -d "$XDG_CACHE_HOME/air-executor/kubernetes-1.20.2" ] || unavailable "make kubernetes-build"'
# As in the systems of other rows; a checkout that is there stays visible.
_OWN_TMP = """\
case $PWD in /tmp/*) mkdir -p "$WORK$PWD"; mount --bind "$PWD" "$WORK$PWD" ;; esac
mount --rbind "$WORK/tmp" /tmp
export TMPDIR=/tmp
"""
_KUBERNETES = Row(
    "kubernetes-1.20",
    "Kubernetes",
    "Kubernetes 1.20 with containerd 1.6, after `make kubernetes-build`",
    tuple(f"tests/engines/test_kubernetes{name}.py" for name in ("", "_attached", "_api", "_parts")),
    setup=f"{_KUBERNETES_BUILT}\n{_OWN_TMP}",
    version=f"{_package('containerd')}; echo; {_package('runc')}",
)

KUBERNETES = (
    _KUBERNETES,
    dataclasses.replace(
        _KUBERNETES,
        name="kubernetes-1.20-containerd-2",
        what="Kubernetes 1.20 with containerd 2.1, after `make kubernetes-build`",
        system="sid",
        packages=("containerd", "runc", "containernetworking-plugins", "etcd-server", "busybox-static", "bash-static"),
        setup=_KUBERNETES_BUILT,
    ),
    Row(
        "kubernetes-1.36-api",
        "Kubernetes",
        "the engine, with the API server's library of 1.36; no Pod runs there",
        ("tests/engines/test_kubernetes_newer_api.py",),
        system="sid",
        packages=("etcd-server", "golang-go", "golang-k8s-apiextensions-apiserver-dev"),
        setup="tests/support/build_newer_api_server.sh",
        version=_package("golang-k8s-apiextensions-apiserver-dev"),
        environment={"AIR_EXECUTOR_TEST_NEWER_API_SERVER": "/opt/newer-api-server/apiextensions-apiserver"},
    ),
)

ROWS: tuple[Row, ...] = (*SHELLS, *FILE_SYSTEMS, *PYTHONS, *USERS, *SLURM, *KUBERNETES)
