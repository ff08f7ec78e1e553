"""What is masked, and what must not be."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.artifacts.draft import Draft
from cluster.artifacts.redact import REDACTED, redact
from cluster.artifacts.s3_storage import S3Storage
from cluster.artifacts.store import ArtifactStore

SECRETS = (
    "api_key apiKey openai_api_key apikey api_keys AWS_SECRET_ACCESS_KEY aws_secret_access_key access_key "
    "secret_key private_key ssh_private_key aws_access_key_id AWSAccessKeyId hf_token wandb_token token "
    "auth_token access-token X-Amz-Security-Token aws_session_token refresh_tokens client_secret "
    "db_password passwd passphrase credentials Authorization cookie"
)
HARMLESS = (
    "max_tokens max_prompt_tokens prompt_tokens tokens tokenizer token_ids tokens_per_s bytes_per_token "
    "eos_token bos_token pad_token unk_token mask_token end_token stop_token_ids key keys sort_key "
    "text_field monkey n_kv_heads name root secretary"
)


@pytest.mark.parametrize("name", SECRETS.split())
def test_secret_names(name: str) -> None:
    assert redact({name: "s3cret"}) == {name: REDACTED}
    assert redact({name: ["s3cret"]}) == {name: [REDACTED]}
    assert redact({name: {"default": "s3cret"}}) == {name: {"default": REDACTED}}
    assert redact(f"it said {name}=s3cret and more") == f"it said {name}={REDACTED} and more"


@pytest.mark.parametrize("name", HARMLESS.split())
def test_harmless_names(name: str) -> None:
    option = f"--{name.replace('_', '-')} text"
    for value in ({name: "text"}, {name: 7}, f"{name}=text", f"{name}: 'text'", option):
        assert redact(value) == value


WORD = st.text(min_size=6).map(lambda text: "pw" + quote(text, safe=""))
HOST = st.from_regex(r"[a-z]{3,8}\.example(:[0-9]{2,4})?", fullmatch=True)


@given(st.sampled_from(["http", "https", "s3", "postgres"]), st.text(max_size=5), WORD, HOST)
def test_credentials_of_any_url(scheme: str, user: str, password: str, host: str) -> None:
    text = f"cannot reach {scheme}://{quote(user, safe='')}:{password}@{host}/path@1?max_tokens=5 now"
    masked = redact({"endpoint": text})["endpoint"]
    assert masked == f"cannot reach {scheme}://{REDACTED}@{host}/path@1?max_tokens=5 now"
    assert redact(masked) == masked


@given(WORD, HOST)
def test_signed_urls_and_tokens(secret: str, host: str) -> None:
    signed = f"https://{host}/x?X-Amz-Credential={secret}&X-Amz-Signature={secret}&sig={secret}&part=3"
    assert secret not in redact(signed)
    assert redact(signed).endswith("&part=3")
    assert redact(f"https://{secret}@{host}/x") == f"https://{REDACTED}@{host}/x"
    assert secret not in redact(f"Authorization: Bearer {secret.replace('%', '-')}xxxxxx")


@pytest.mark.parametrize(
    "text",
    [
        *("s3://bucket/key@2/part-*.jsonl", "mail me@example.com", "a=b", "https://host/a@b"),
        *("max_tokens=5", "max_tokens = 5", "eos_token: 3", "'eos_token': '<eos>'", "--max-tokens 5"),
        *("--eos-token 3", "--hf-token --name a", "--name 'a'", "tokens: 5", "token == 5", "Token::new"),
        *('password=""', "basic understanding of it", "Basic Knowledge", "a secret stays", "token 5"),
    ],
)
def test_texts_without_secrets_stay(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        'password="{}"',
        "HF_TOKEN='{}' manta corpus",
        'it sent {{"api_key": "{}", "model": "m"}}',
        "it sent {{'api_key': '{}', 'model': 'm'}}",
        'it sent {{\\"api_key\\": \\"{}\\", \\"model\\": 1}}',
        'password: "{}\\" and more" in a file',
        "secret_access_key = {}",
        "aws_secret_access_key: {}\nregion: x",
        "Authorization: Basic {}",
        "curl -H 'Authorization: Bearer {}' http://host",
        "Authorization: token {}",
        "it answered Basic {}Zm9vOmJhcg== and no more",
        "manta corpus --hf-token {} --name a",
        "manta corpus --hf-token '{}' --name a",
        "['manta', '--hf-token', '{}', '--name']",
        'OSError: it said:password="{}"',
        "error: password={}",
        'password="{}',
    ],
)
def test_a_secret_in_any_notation(text: str) -> None:
    for secret in ("s3cret", "a-long.s3cret+"):
        masked = redact(text.format(secret))
        assert "s3cret" not in masked
        assert REDACTED in masked
        assert redact(masked) == masked
        assert masked.startswith(text[:5])


def test_what_is_around_a_secret_stays() -> None:
    assert redact("manta --hf-token x --max-tokens 5") == f"manta --hf-token {REDACTED} --max-tokens 5"
    command = ["manta", "-v", "--hf-token", "x", "name"]
    masked = [*command[:3], REDACTED, "name"]
    assert redact(command) == masked
    assert redact({"argv": command}) == {"argv": masked}
    assert redact({"tokens": ["--password", "x"], "password": ["-v", "x"]}) == {
        "tokens": ["--password", REDACTED],
        "password": [REDACTED, REDACTED],
    }
    assert redact('{"token": "x y", "n": 1}') == f'{{"token": "{REDACTED}", "n": 1}}'


def test_nothing_that_a_run_writes_down_holds_a_secret(tmp_path: Path) -> None:
    draft = ArtifactStore(tmp_path).begin(
        kind="corpora", name="a", stage="made", logic_version=1, what={}, inputs={}
    )
    assert isinstance(draft, Draft)
    error = "OSError: https://me:s3cret@host/x: AWS_SECRET_ACCESS_KEY=s3cret"
    draft.note(failed_units={"read-00000": error}, hf_token="s3cret", seconds_waited=3)
    draft.ledger.quarantine({"read-00000": error})
    made = draft.commit({})
    assert made.run()["seconds_waited"] == 3
    assert b"s3cret" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_endpoint_is_named_without_its_credentials() -> None:
    storage = S3Storage("bucket", "", "http://me:s3cret@127.0.0.1:9")
    assert "s3cret" not in storage._where()
    assert "127.0.0.1:9" in storage._where()
