"""Inputs that cannot be read are one line that names the file."""

import builtins

import pytest

from cluster.errors import UserError
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.inputs import find_files, hash_files


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "open.txt").write_text("text")
    (tmp_path / "closed.txt").write_text("text")
    really_open = builtins.open

    def refuse(path, *arguments, **options):
        """As the system does, but for root too, who runs the tests in a container."""
        if str(path).endswith("closed.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *arguments, **options)

    files = find_files(CorpusConfig(paths=(str(tmp_path),)))
    assert len(hash_files(files)) == 2
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(UserError, match=r"closed\.txt: cannot be read \(Permission denied\)") as raised:
        hash_files(files)
    assert "\n" not in str(raised.value)
