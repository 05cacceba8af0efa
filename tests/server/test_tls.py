"""Certificates: which are used, and what is said of the others."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.server.tls import Tls, TlsFiles
from tests.support.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def refused(paths: TlsFiles) -> str:
    with pytest.raises(SettingsError) as error:
        Tls(paths)
    return str(error.value)


def test_a_certificate_is_used(authority: Authority, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert Tls(authority.issue()).context
    assert caplog.text == ""


def test_a_certificate_that_has_expired_is_refused(authority: Authority):
    assert "expired" in refused(authority.issue(days=-1))


def test_a_certificate_that_expires_soon_is_warned_of(authority: Authority, caplog: pytest.LogCaptureFixture):
    Tls(authority.issue(days=3.5))
    assert "expires in 3 days" in caplog.text


def test_a_certificate_of_a_client_is_refused(authority: Authority):
    assert "purpose" in refused(authority.issue(is_client=True))


def test_a_key_that_belongs_to_another_certificate_is_refused(authority: Authority):
    one, other = authority.issue("one"), authority.issue("other")
    assert f"{other.key} does not belong to the certificate {one.certificate}" in refused(one._replace(key=other.key))


def test_an_encrypted_key_is_refused_without_a_question(authority: Authority):
    assert "encrypted" in refused(authority.issue(password="secret"))


@pytest.mark.parametrize("field", ["certificate", "key", "client_ca"])
def test_a_file_that_is_not_there_is_named(authority: Authority, tmp_path: Path, field: str):
    missing = tmp_path / "missing.pem"
    assert f"{missing} cannot be read: No such file" in refused(authority.issue()._replace(**{field: missing}))


@pytest.mark.parametrize("field", ["certificate", "key", "client_ca"])
@pytest.mark.parametrize("content", ["", "no certificate"])
def test_a_file_that_is_no_certificate_is_named(authority: Authority, tmp_path: Path, field: str, content: str):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(content)
    assert str(wrong) in refused(authority.issue()._replace(**{field: wrong}))


def test_a_key_that_others_can_read_is_warned_of(authority: Authority, caplog: pytest.LogCaptureFixture):
    paths = authority.issue()
    paths.key.chmod(0o644)
    Tls(paths)
    assert "chmod 600" in caplog.text


def test_a_new_certificate_is_taken(authority: Authority, caplog: pytest.LogCaptureFixture):
    tls = Tls(authority.issue())
    before = tls.context
    authority.issue()
    with caplog.at_level(logging.INFO):
        tls.reload()
    assert tls.context is not before
    assert "was read again" in caplog.text


def test_a_new_certificate_that_is_not_valid_leaves_the_old_one(authority: Authority, caplog: pytest.LogCaptureFixture):
    tls = Tls(authority.issue())
    before = tls.context
    authority.issue(days=-1)
    tls.reload()
    assert tls.context is before
    assert "stays in use" in caplog.text
