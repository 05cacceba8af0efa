"""What is said when the other machine cannot be reached by SSH, or is not the one that it was."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import SshError
from airflow_provider_air_executor.remote import ssh
from airflow_provider_air_executor.remote.ssh import Tunnel
from tests.remote.ssh.conftest import OtherMachine, get
from tests.support.sshd import needs_sshd
from tests.support.waiting import wait_until

pytestmark = needs_sshd


def why(tunnel: Tunnel) -> str:
    with pytest.raises(SshError) as error:
        tunnel.socket()
    return str(error.value)


class TestHostKey:
    """It is always checked, unless the connection says that it is not."""

    def test_unknown(self, machine: OtherMachine) -> None:
        machine.sshd.known_hosts.write_text("")
        said = why(machine.tunnel())
        assert f"the SSH host key of [127.0.0.1]:{machine.sshd.port} is not in {machine.sshd.known_hosts}" in said
        key = subprocess.run(
            ["ssh-keygen", "-lf", str(machine.sshd.directory / "host_key.pub")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert key.stdout.split()[1] in said
        add = f"ssh-keyscan -p {machine.sshd.port} 127.0.0.1 >> {machine.sshd.known_hosts}"
        assert said.endswith(add)
        assert machine.sshd.logins() == 0
        subprocess.run(add, shell=True, check=True, capture_output=True)
        assert wait_until(lambda: _reached(machine.tunnel()), what="it is reached")

    def test_changed(self, machine: OtherMachine) -> None:
        machine.sshd.kill()
        machine.sshd.make_key("host_key")
        machine.sshd.start()
        said = why(machine.tunnel())
        assert "has another SSH host key than" in said
        assert f"ssh-keygen -R '[127.0.0.1]:{machine.sshd.port}'" in said
        assert machine.sshd.logins() == 0

    def test_changed_to_another_kind(self, machine: OtherMachine) -> None:
        made = machine.sshd.directory / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(made)], check=True)
        key = made.with_suffix(".pub").read_text()
        machine.sshd.known_hosts.write_text(f"[127.0.0.1]:{machine.sshd.port} {key}")
        assert "has another SSH host key than" in why(machine.tunnel())

    def test_changed_while_it_is_in_use(self, machine: OtherMachine) -> None:
        """Nothing is sent there, and what waits goes on when it is right again."""
        tunnel = machine.tunnel()
        get(tunnel)
        machine.sshd.kill()
        machine.sshd.make_key("host_key")
        machine.sshd.start()

        def said() -> str:
            try:
                tunnel.socket()
            except ConnectionError as error:
                return str(error) if "key" in str(error) else ""
            return ""

        logins = machine.sshd.logins()
        assert "has another SSH host key" in wait_until(said, what="the other key is seen")
        assert machine.sshd.logins() == logins

    def test_of_the_connection(self, machine: OtherMachine) -> None:
        machine.sshd.known_hosts.unlink()
        assert get(machine.tunnel(host_key=machine.sshd.host_key()))
        ssh.close_all()
        other = machine.sshd.make_key("other").with_suffix(".pub").read_text()
        said = why(machine.tunnel(host_key=other))
        assert "than the connection's host_key says" in said
        assert "correct that" in said

    def test_without_a_file(self, machine: OtherMachine) -> None:
        assert "is not in ~/.ssh/known_hosts" in why(machine.tunnel(known_hosts=None))

    def test_a_configuration_does_not_turn_it_off(self, machine: OtherMachine, tmp_path: Path) -> None:
        """Asyncssh takes this for a wish to trust all."""
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh" / "config").write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
        assert "is not in ~/.ssh/known_hosts" in why(machine.tunnel(known_hosts=None))

    def test_not_checked_on_demand(self, machine: OtherMachine) -> None:
        machine.sshd.known_hosts.write_text("")
        assert get(machine.tunnel(check_host_key=False))


def _reached(tunnel: Tunnel) -> str:
    try:
        return tunnel.socket()
    except SshError:
        return ""


class TestLogin:
    """Who it is."""

    def test_refused(self, machine: OtherMachine) -> None:
        said = why(machine.tunnel(key_file=str(machine.sshd.make_key("other"))))
        assert said.startswith(f"127.0.0.1 does not let user {machine.sshd.user} in by SSH: Permission denied")

    def test_refused_for_a_while(self, machine: OtherMachine) -> None:
        """As while a directory service is away: who was let in waits."""
        tunnel = machine.tunnel()
        pid = get(tunnel)
        allowed = machine.sshd.directory / "authorized_keys"
        allowed.rename(allowed.with_suffix(".away"))
        machine.sshd.end_sessions()

        def is_refused() -> bool:
            try:
                tunnel.socket()
            except ConnectionError as error:
                return "does not let user" in str(error)
            return False

        wait_until(is_refused, what="it is refused")
        allowed.with_suffix(".away").rename(allowed)
        wait_until(lambda: _works(tunnel), what="it is let in")
        assert get(tunnel) == pid

    def test_the_text_of_a_key(self, machine: OtherMachine) -> None:
        assert get(machine.tunnel(key_file=None, private_key=machine.sshd.key.read_text()))

    def test_a_passphrase(self, machine: OtherMachine) -> None:
        locked = machine.sshd.make_key("locked", passphrase="open it")
        allowed = machine.sshd.directory / "authorized_keys"
        allowed.write_text(locked.with_suffix(".pub").read_text())
        assert get(machine.tunnel(key_file=str(locked), passphrase="open it"))
        ssh.close_all()
        assert "the SSH connection to 127.0.0.1 is not valid: " in why(
            machine.tunnel(key_file=str(locked), passphrase="no")
        )

    def test_a_missing_key(self, machine: OtherMachine) -> None:
        assert "needs /nope/key, which is not there" in why(machine.tunnel(key_file="/nope/key"))

    def test_no_key_at_all(self, machine: OtherMachine) -> None:
        assert "the SSH connection to 127.0.0.1 is not valid" in why(machine.tunnel(private_key="no key"))

    def test_a_name_of_the_configuration(self, machine: OtherMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(machine.sshd.home("login-node")))
        tunnel = machine.tunnel(host="login-node", port=None, username=None, key_file=None, known_hosts=None)
        assert get(tunnel)

    def test_a_proxy(self, machine: OtherMachine) -> None:
        """The connection goes to what a command reaches."""
        code = (
            "import socket, sys, os, threading; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
            "t = threading.Thread(target=lambda: [os.write(1, d) for d in iter(lambda: s.recv(65536), b'')],"
            " daemon=True); t.start(); [s.sendall(d) for d in iter(lambda: os.read(0, 65536), b'')]"
        )
        assert get(machine.tunnel(proxy_command=f'{sys.executable} -c "{code}" %h %p'))


def _works(tunnel: Tunnel) -> str:
    try:
        return tunnel.socket()
    except ConnectionError:
        return ""


class TestCommand:
    """What the other machine answers when the server is asked for."""

    def test_not_found(self, machine: OtherMachine) -> None:
        said = why(machine.tunnel(command="nope"))
        assert said.startswith("127.0.0.1 has no command 'nope' (")
        assert "Install air-executor there, or name its path" in said

    def test_a_login_shell_that_prints(self, machine: OtherMachine) -> None:
        command = machine.script(f"echo 'Welcome!'; echo '{{1: 2}}'; '{machine.command}' \"$@\"; echo '[1]'; echo bye")
        assert get(machine.tunnel(command=command))

    def test_something_else(self, machine: OtherMachine) -> None:
        said = why(machine.tunnel(command=machine.script("echo Welcome; echo {}")))
        assert "does not say where its server is; it has printed: Welcome {}" in said

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            (
                "echo 'air-executor: the disk is full' >&2; exit 1",
                "has ended with exit code 1 on 127.0.0.1: the disk is",
            ),
            ("echo \"Error: No such command 'serve'.\" >&2; exit 2", "air-executor on 127.0.0.1 is too old for this"),
            ("echo 'SyntaxError: invalid syntax' >&2; exit 1", "It needs Python 3.11 or newer"),
            ("kill -9 $$", "has ended with"),
            ("exit 3", "exit code 3 on 127.0.0.1: it has printed nothing"),
        ],
    )
    def test_it_fails(self, machine: OtherMachine, script: str, expected: str) -> None:
        assert expected in why(machine.tunnel(command=machine.script(script)))

    def test_its_words_are_quoted(self, machine: OtherMachine, tmp_path: Path) -> None:
        command = machine.script(
            f'for word; do echo "[$word]" >> {tmp_path}/words; done; exec \'{machine.command}\' "$@"'
        )
        assert get(machine.tunnel(command=f"{command} --one 'two $HOME ; three'"))
        words = (tmp_path / "words").read_text().splitlines()
        assert words == ["[--one]", "[two $HOME ; three]", "[serve]", "[--ensure]", "[--base-path]", "[/data/it's]"]

    def test_a_home_directory(self, machine: OtherMachine) -> None:
        """The one there, not the one here."""
        home = pwd.getpwuid(os.geteuid()).pw_dir
        assert f"{home}/no such/air-executor" in why(machine.tunnel(command="'~/no such/air-executor'"))


def test_a_machine_that_is_not_there(machine: OtherMachine) -> None:
    machine.sshd.kill()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1 by SSH: .*Connect"):
        machine.tunnel().socket()


def test_without_asyncssh() -> None:
    """It says what installs it."""
    code = """
import sys
sys.modules["asyncssh"] = None
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.remote.ssh import SshTarget, tunnel_to
try:
    tunnel_to(SshTarget("there")).socket()
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'airflow-provider-air-executor[ssh]'" in done.stdout
