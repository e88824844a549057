"""Does the redactor hide every secret, and nothing else?

Tokens are put together while the tests run, so that this file holds none that a scanner of secrets would report.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import string
import sys
import threading
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex_containerization import redact
from codomyrmex_containerization.redact import JSON, MASK, Redactor, is_secret_name, strip_controls

_RANDOM = random.Random(20)
ALPHANUMERIC = string.ascii_letters + string.digits


def some(count: int, alphabet: str = ALPHANUMERIC) -> str:
    """Return random characters that hold at least a digit and letters of both cases, where the alphabet has them."""
    rest = "".join(_RANDOM.choice(alphabet) for _ in range(count))
    start = "".join(kind for kind in ("Q", "z", "7") if kind in alphabet)
    return (start + rest)[:count]


HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + "234567"
DASHES = "-" * 5


def pem(kind: str = "RSA ", lines: int = 6) -> str:
    body = "\n".join(some(64) for _ in range(lines))
    return f"{DASHES}BEGIN {kind}PRIVATE KEY{DASHES}\n{body}\n{some(20)}==\n{DASHES}END {kind}PRIVATE KEY{DASHES}"


def jwt() -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256"}, {"sub": "1234567890"})
    ]
    return ".".join([*parts, some(43)])


TOKENS = {
    "AWS access key id": "AK" + "IA" + some(16, UPPER),
    "AWS temporary key id": "AS" + "IA" + some(16, UPPER),
    "GitHub personal": "gh" + "p_" + some(36),
    "GitHub OAuth": "gh" + "o_" + some(36),
    "GitHub user": "gh" + "u_" + some(36),
    "GitHub server": "gh" + "s_" + some(36),
    "GitHub refresh": "gh" + "r_" + some(76),
    "GitHub fine-grained": "github_" + "pat_" + some(22) + "_" + some(59),
    "GitLab personal": "gl" + "pat-" + some(20),
    "GitLab deploy": "gl" + "dt-" + some(20),
    "GitLab runner": "gl" + "rt-" + some(20),
    "Slack bot": "xo" + "xb-" + "123456789012-" + some(24),
    "Slack user": "xo" + "xp-" + "123456789012-" + some(24),
    "Slack app": "xa" + "pp-1-A012-" + some(30),
    "Google API": "AI" + "za" + some(35),
    "Google OAuth": "ya" + "29." + some(60),
    "Google client secret": "GOC" + "SPX-" + some(28),
    "JWT": jwt(),
    "npm": "np" + "m_" + some(36),
    "PyPI": "py" + "pi-" + "AgE" + some(80),
    "Stripe live": "sk_" + "live_" + some(24),
    "Stripe test": "sk_" + "test_" + some(24),
    "OpenAI": "s" + "k-" + some(48),
    "OpenAI project": "s" + "k-proj-" + some(48),
    "Anthropic": "s" + "k-ant-" + "api03-" + some(80),
    "Docker": "dckr_" + "pat_" + some(27),
    "Hugging Face": "h" + "f_" + some(34),
    "age": "AGE-SECRET" + "-KEY-1" + some(58, string.ascii_uppercase + "234567"),
    "SendGrid": "S" + "G." + some(22) + "." + some(43),
    "DigitalOcean": "dop_" + "v1_" + some(64, HEX),
    "Vault": "hv" + "s." + some(90),
    "Databricks": "da" + "pi" + some(32, HEX),
    "Shopify": "shp" + "at_" + some(32, HEX),
    "Grafana": "gl" + "sa_" + some(32) + "_" + some(8, HEX),
    "Linear": "lin_" + "api_" + some(40),
    "RubyGems": "ruby" + "gems_" + some(48, HEX),
    "Tailscale": "ts" + "key-auth-" + some(12) + "-" + some(32),
    "Telegram": "1234567890" + ":A" + "A" + some(33),
}

SECRET_NAMES = (
    "API_KEY PASSWORD password DB_PASSWD token GITHUB_TOKEN client_secret clientSecret AWS_SECRET_ACCESS_KEY "
    "private-key private_key PGPASSWORD credentials auth X-Api-Key X-Auth-Token Authorization Proxy-Authorization "
    "Cookie Set-Cookie APIKEY apikey authToken _authToken MYSQL_PWD DB_PASS SECRET_KEY_BASE API_KEY_PROD PASSWORD1 "
    "POSTGRES_PASSWORD root.password AccountKey SSH_PRIVATE_KEY signingKey npm_config__auth PASSPHRASE "
    "OPENAI_API_KEY accessToken ANTHROPIC_API_KEY SharedAccessKey db.password spring.datasource.password "
    "encryption_key APP_KEY userpassword dbpassword githubtoken .dockerconfigjson"
).split()

HARMLESS_NAMES = (
    "KEYBOARD MONKEY TOKENIZER_PARALLELISM TOKENIZERS_PARALLELISM public_key PUBLIC_KEY SSH_PUBLIC_KEY key_id "
    "AWS_ACCESS_KEY_ID PASSWORD_FILE POSTGRES_PASSWORD_FILE TOKEN_PATH AUTHOR SSH_AUTH_SOCK PATH HOME PWD OLDPWD "
    "KEY key primary_key cache_key GPG_KEY name image status id secretName token_count max_tokens tokens token_type "
    "token_url PASSWORD_MIN_LENGTH auth_method authentication authority bypass compass keyring turkey hockey passed "
    "passing COMPOSE_PROJECT_NAME token_expires_at monkey_patch XAUTHORITY"
).split()


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_name_of_a_secret_is_recognised(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", [*HARMLESS_NAMES, "", "-", "=", "é", "a" * 5_000])
def test_name_of_something_else_is_not_a_secret(name: str) -> None:
    assert not is_secret_name(name)


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "see {} here",
        '{{"msg": "{}"}}',
        "x={}",
        "'{}'",
        "a\n{}\nb",
        "first\\n{}\\nsecond",
        "({})",
        "{},",
        "url%20{}",
        "token={}",
    ],
)
@pytest.mark.parametrize("kind", TOKENS)
def test_token_is_masked_wherever_it_stands(kind: str, frame: str) -> None:
    token = TOKENS[kind]
    masked = Redactor().text(frame.format(token))
    assert token[8:] not in masked
    assert MASK in masked


@pytest.mark.parametrize("kind", TOKENS)
def test_token_is_masked_exactly(kind: str) -> None:
    assert Redactor().text(f"found {TOKENS[kind]} in layer 3") == f"found {MASK} in layer 3"


S = "h7Kq" + "Zx2vLm9"
NAMED = [
    (f"DB_PASSWORD={S}", "DB_PASSWORD=***"),
    (f"export API_KEY={S} && make", "export API_KEY=*** && make"),
    (f'API_KEY="{S} with space" next', 'API_KEY="***" next'),
    (f"API_KEY='{S}'", "API_KEY='***'"),
    (f"password: {S}", "password: ***"),
    (f"password: {S} and three words", "password: ***"),
    (f"  db_password: {S}  # comment", "  db_password: ***"),
    (f"- token: {S}", "- token: ***"),
    (f'"token": "{S}"', '"token": "***"'),
    (f'{{"user": "joe", "password": "{S}\\"x", "n": 1}}', '{"user": "joe", "password": "***", "n": 1}'),
    (f'{{"password":"{S}","next":"value"}}', '{"password":"***","next":"value"}'),
    ('{"password": 123456, "n": 1}', '{"password": "***", "n": 1}'),
    ('{"password": null, "token": true}', '{"password": null, "token": true}'),
    (f"{{'password': '{S}', 'n': 1}}", "{'password': '***', 'n': 1}"),
    (f'client_secret = "{S}"', 'client_secret = "***"'),
    (f"client_secret = {S}", "client_secret = ***"),
    (f"mysql --password {S} --user root", "mysql --password *** --user root"),
    (f"curl --token={S} x", "curl --token=*** x"),
    (f"run --db-password '{S} x' y", "run --db-password '***' y"),
    (f'["mysql", "--password", "{S}", "x"]', '["mysql", "--password", "***", "x"]'),
    (f"docker run -e API_TOKEN={S} alpine", "docker run -e API_TOKEN=*** alpine"),
    (f"['DB_PASSWORD={S}', 'PATH=/bin']", "['DB_PASSWORD=***', 'PATH=/bin']"),
    (f'["DB_PASSWORD={S} two words", "PATH=/bin"]', '["DB_PASSWORD=***", "PATH=/bin"]'),
    (f'["DB_PASSWORD={S}\\"q", "PATH=/bin"]', '["DB_PASSWORD=***", "PATH=/bin"]'),
    (f"Server=db;Password={S};Database=x", "Server=db;Password=***;Database=x"),
    (f"type=x,password={S},user=y", "type=x,password=***,user=y"),
    (f"Step 4/7 : ENV DB_PASSWORD {S}", "Step 4/7 : ENV DB_PASSWORD ***"),
    (f"ARG NPM_TOKEN={S}", "ARG NPM_TOKEN=***"),
    (f"<password>{S}</password>", "<password>***</password>"),
    (f"//registry.example/:_authToken={S}", "//registry.example/:_authToken=***"),
    (f'os.environ["API_KEY"] = "{S}"', 'os.environ["API_KEY"] = "***"'),
    (f'{{"outer": "{{\\"token\\": \\"{S}\\", \\"n\\": 1}}"}}', '{"outer": "{\\"token\\": \\"***\\", \\"n\\": 1}"}'),
    (f"first\\nAPI_KEY={S}", "first\\nAPI_KEY=***"),
    (f'{{"name": "DB_PASSWORD", "value": "{S}"}}', '{"name": "DB_PASSWORD", "value": "***"}'),
    (f"- name: DB_PASSWORD\n  value: {S}\n", "- name: DB_PASSWORD\n  value: ***\n"),
    (f"private_key: |\n  {S}\n  {S}2\nnext: 1", "private_key: |\n  ***\n  ***\nnext: 1"),
    (f"PASSWORD=it's{S}", "PASSWORD=***"),
    (f"Generated root password: {S}", "Generated root password: ***"),
    (f"AWS_SECRET_ACCESS_KEY={S}/+x", "AWS_SECRET_ACCESS_KEY=***"),
    (f"PASSWORD={S}\r\nnext", "PASSWORD=***\r\nnext"),
    (f"{{Name:x Password:{S}}}", "{Name:x Password:***}"),
    (f"map[token:{S} user:joe]", "map[token:*** user:joe]"),
    (f"machine example.org login joe password {S}", "machine example.org login joe password ***"),
    (f"ALTER USER joe IDENTIFIED BY '{S} x';", "ALTER USER joe IDENTIFIED BY '***';"),
    (f"CREATE ROLE joe WITH PASSWORD '{S}'", "CREATE ROLE joe WITH PASSWORD '***'"),
]

URLS = [
    (f"postgres://joe:{S}@db:5432/x", "postgres://joe:***@db:5432/x"),
    (f"redis://:{S}@cache", "redis://:***@cache"),
    (f"https://joe:{S}@proxy:3128 failed", "https://joe:***@proxy:3128 failed"),
    (f"postgres://joe:{S}@p@db/x", "postgres://joe:***@db/x"),
    (f"postgres://joe:{S}/p@db/x", "postgres://joe:***@db/x"),
    (f"https://{S}abcdefgh1@github.com/a/b", "https://***@github.com/a/b"),
    (f"https://{S}abcdefgh1:x-oauth-basic@github.com/a", "https://***:***@github.com/a"),
    (f"GET /a?token={S}&page=2 HTTP/1.1", "GET /a?token=***&page=2 HTTP/1.1"),
    (f"https://b/c?x=1&sig={S}&se=2", "https://b/c?x=1&sig=***&se=2"),
    (f"https://b/c?X-Amz-Signature={S}", "https://b/c?X-Amz-Signature=***"),
    (f"https://b/c?a=1\\u0026access_token={S}", "https://b/c?a=1\\u0026access_token=***"),
    ("https://hooks.slack" + f".com/services/T0001/B0001/{S}{S}", "https://hooks.slack" + ".com/services/***"),
]

HEADERS = [
    (f"Authorization: Bearer {S}", "Authorization: Bearer ***"),
    (f"authorization: basic {S}", "authorization: basic ***"),
    (f"Authorization: {S}", "Authorization: ***"),
    (f"curl -H 'Authorization: Bearer {S}' https://x", "curl -H 'Authorization: Bearer ***' https://x"),
    (f'{{"Authorization": "Bearer {S}"}}', '{"Authorization": "***"}'),
    (f"> X-Auth-Token: {S}", "> X-Auth-Token: ***"),
    (f"sent Bearer {S}{S} to it", "sent Bearer *** to it"),
    (f"Cookie: a={S}; b=2", "Cookie: ***"),
    (f'Set-Cookie: sid="{S}"; Path=/', "Set-Cookie: ***"),
    (f"curl -u joe:{S} https://x", "curl -u joe:*** https://x"),
]


@pytest.mark.parametrize(("text", "expected"), [*NAMED, *URLS, *HEADERS])
def test_value_becomes_the_mask_and_the_rest_stays(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected
    assert Redactor().text(expected) == expected


NEGATIVES = [
    "",
    "plain text",
    "Step 3/7 : ENV PATH=/usr/local/bin:/usr/bin:/bin",
    "Step 2/7 : ARG TARGETPLATFORM",
    "#12 sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 3.2MB / 7.1MB 0.4s done",
    "docker.io/library/python@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "docker://alpine:3.19@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "id 6f1ed002-ab59-4d3b-8c1e-3d9f6f0d4f7c",
    "container 3f4e5d6c7b8a is running",
    "SyntaxError: Unexpected token ')' in JSON at position 4",
    "SyntaxError: Unexpected token: ')'",
    "SyntaxError: Unexpected token: punc (})",
    "Unexpected token = in JSON",
    "parse error: unexpected token at line 3",
    "error: invalid token: expected identifier",
    "#7 [auth] library/alpine:pull token for registry.example.com",
    "WARN[0000] /var/lib/docker/secrets: not mounted",
    "secrets: 0",
    "key: value",
    "note: the key thing is this",
    "Author: Jo Doe <jo@example.org>",
    "--- PASS: TestSomething (0.00s)",
    "PASS: 12 FAIL: 0",
    "pass: 5, fail: 1",
    "====== 12 passed in 0.3s ======",
    "keyring: added",
    "public_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI",
    "RUN --mount=type=secret,id=npmrc npm ci",
    "docker build --secret id=npmrc,src=.npmrc .",
    "docker login --username joe --password-stdin",
    "use --token to authenticate",
    "Using --password is insecure",
    "POSTGRES_PASSWORD_FILE=/run/secrets/db",
    "PASSWORD=$DB_PASSWORD",
    "password: ${DB_PASSWORD}",
    "password: ${{ secrets.DB }}",
    "token: true",
    "password=",
    "Password: ",
    "password: ***",
    "TOKENIZER=approx",
    "start of 'python -c pass' = 15 ms",
    "mysql: [Warning] Using a password on the command line interface can be insecure.",
    'FATAL: password authentication failed for user "joe"',
    "error: secret: not found in store",
    "auth: failed to verify the client",
    "unauthorized: authentication required",
    'Www-Authenticate: Bearer realm="https://auth.docker.io/token",service="registry.docker.io"',
    "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/alpine:pull",
    "http://localhost:8080/path@2x.png",
    "git clone ssh://git@github.com/a/b.git",
    "https://joe@example.org/x",
    "docker run --user 1000:1000 alpine",
    "myauth:1.2 and vault-secret:v1",
    "std::auth::token::new()",
    "0.0.0.0:8080->80/tcp, :::8080->80/tcp",
    "task-runner-2 skipped-a-lot-of-lines disk-usage-of-Volume-1",
    "GPG_KEY=A035C8C19219BA821ECEA86B64E628F8D684696D",
    "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUQ\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----",
    "Basic authentication is off; Basic usage follows",
    "Bearer of bad news",
    "cookie: monster",
    "npm_config_cache=/home/u/.npm npm_lifecycle_event=build",
    "eyJ is how they begin",
    "curl -fsSL https://example.org/install.sh | sh",
    "Removing intermediate container 1a2b3c4d5e6f",
    "CVE-2024-3094 liblzma5 5.6.0 CRITICAL key=1",
    '{"Name": "web", "State": {"Status": "running", "ExitCode": 0}, "Ports": {"80/tcp": [{"HostPort": "8080"}]}}',
    "[==>      ] 12%  eta 0:03",
    "a=1&b=2?c=3",
    'time="2024-01-01T00:00:00Z" level=info msg="API listen on /var/run/docker.sock"',
]


@pytest.mark.parametrize("text", NEGATIVES)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert Redactor().text(text) == text


# --- PEM ------------------------------------------------------------------------------------------------------------


def leftovers(block: str, masked: str) -> list[str]:
    return [line for line in block.split("\n")[1:-1] if line in masked]


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_pem_key_is_masked_whole(kind: str) -> None:
    assert Redactor().text(f"before\n{pem(kind)}\nafter") == f"before\n{MASK}\nafter"


def test_pem_key_with_literal_newlines_leaves_valid_json() -> None:
    text = json.dumps({"type": "service_account", "pem": pem(""), "n": 1})
    assert json.loads(Redactor().text(text)) == {"type": "service_account", "pem": MASK, "n": 1}


@pytest.mark.parametrize("escape", ["\n", "\\n", "\r\n", " "])
def test_pem_key_without_its_end_is_masked(escape: str) -> None:
    block = "\n".join(pem().split("\n")[:-2])
    masked = Redactor().text("x " + block.replace("\n", escape) + escape + "then: prose goes on")
    assert not leftovers(block, masked)
    assert masked.endswith("prose goes on")


def test_pem_key_without_its_beginning_is_masked() -> None:
    block = "\n".join(pem().split("\n")[2:])
    masked = Redactor().text(f"a line of log\n{block}\nafter")
    assert masked == f"a line of log\n{MASK}\nafter"


def test_pem_key_spread_over_json_lines_leaves_their_structure() -> None:
    block = pem()
    text = "\n".join(json.dumps({"log": line + "\n", "stream": "stdout"}) for line in block.split("\n"))
    masked = Redactor().text(text)
    assert not leftovers(block, masked)
    assert all(json.loads(line)["stream"] == "stdout" for line in masked.split("\n"))


def test_pem_key_over_many_lines_of_a_stream_is_masked_until_its_end() -> None:
    lines = Redactor().lines()
    block = pem()
    masked = [lines.line(line) for line in ["before", *block.split("\n"), "after"]]
    assert masked == ["before", *[MASK] * len(block.split("\n")), "after"]


def test_mention_of_a_pem_header_does_not_hide_the_stream_for_ever() -> None:
    lines = Redactor().lines()
    lines.line(f"error: expected {DASHES}BEGIN PRIVATE KEY{DASHES}")
    masked = [lines.line(f"line {number}") for number in range(20)]
    assert masked[-1] == "line 19"


def test_pem_key_on_one_line_leaves_the_stream_open() -> None:
    lines = Redactor().lines()
    lines.line("x " + pem().replace("\n", "\\n"))
    assert lines.line("after") == "after"


def test_yaml_block_of_a_secret_stays_masked_over_the_lines_of_a_stream() -> None:
    lines = Redactor().lines()
    given_lines = ["a: 1", "password: |", f"  {S}", "", "b: 2"]
    assert [lines.line(line) for line in given_lines] == ["a: 1", "password: |", f"  {MASK}", "", "b: 2"]


def test_streams_do_not_share_their_state() -> None:
    redactor = Redactor()
    redactor.lines().line(f"{DASHES}BEGIN PRIVATE KEY{DASHES}")
    assert redactor.lines().line("plain") == "plain"


# --- learned values -------------------------------------------------------------------------------------------------

ODD = 'q"\\7' + "é/+ &x<y"


@pytest.mark.parametrize(
    "spelling",
    [
        ODD,
        json.dumps(ODD),
        json.dumps(ODD, ensure_ascii=False),
        json.dumps(json.dumps(ODD)),
        repr(ODD),
        quote(ODD, safe=""),
        base64.b64encode(ODD.encode()).decode(),
        base64.urlsafe_b64encode(ODD.encode()).decode(),
        base64.b64encode(f"joe:{ODD}".encode()).decode(),
        base64.b64encode(f"jo:{ODD} more".encode()).decode(),
        ODD.encode().hex(),
    ],
)
def test_learned_value_is_masked_in_every_spelling(spelling: str) -> None:
    redactor = Redactor()
    redactor.learn(ODD)
    masked = redactor.text(f"log {spelling} end")
    assert MASK in masked
    assert len(masked) <= len("log  end") + 16
    assert redactor.text(masked) == masked


def test_overlapping_learned_values_leave_no_rest() -> None:
    assert Redactor(["abcdef12", "ef12ghij", "abcdef"]).text("xabcdef12ghijx abcdef") == "x***x ***"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "true",
        "password",
        "changeme",
        "PostgreSQL",
        "1234567",
        "xxxxxxxxx",
        "******",
        "/run/secrets/db",
        "${NAME}",
    ],
)
def test_value_that_would_shred_ordinary_text_is_not_learned(value: str) -> None:
    redactor = Redactor()
    redactor.learn(value)
    assert redactor.text(f"so: {value}.") == f"so: {value}."


def test_multi_line_value_is_masked_line_by_line_too() -> None:
    first, second = some(30), some(30)
    redactor = Redactor()
    redactor.learn_named({"APP_SECRET": f"{first}\n{second}\n"})
    lines = redactor.lines()
    assert [lines.line(f"a {first}"), lines.line(second)] == ["a ***", "***"]


def test_environment_teaches_secret_names_and_proxy_passwords_only() -> None:
    environ = {
        "API_TOKEN": S,
        "HTTPS_PROXY": "http://joe:" + "Pr0xy%2Fpass@proxy:3128",
        "HOME": "/home/somebody",
        "EDITOR": "vim-editor",
    }
    text = Redactor.from_environment(environ).text(f"{S} Pr0xy%2Fpass Pr0xy/pass /home/somebody vim-editor proxy:3128")
    assert text == "*** *** *** /home/somebody vim-editor proxy:3128"


@pytest.mark.parametrize(
    "arguments",
    [
        {"env": {"DB_PASSWORD": S}},
        {"env": [f"DB_PASSWORD={S}"]},
        {"command": ["login", "--password", S]},
        {"command": ["login", f"--password={S}"]},
        {"command": f"login --password {S}"},
        {"build_args": {"index": f"https://joe:{S}@pypi.internal/simple"}},
        {"env": [{"name": "DB_PASSWORD", "value": S}]},
        {"dockerfile_text": f"FROM x\nARG API_TOKEN={S}\n"},
        {"labels": {"a": {"b": [{"client_secret": S}]}}},
        {"secrets": [S]},
    ],
)
def test_arguments_teach_what_later_output_must_not_show(arguments: dict[str, JSON]) -> None:
    redactor = Redactor()
    redactor.learn_arguments(arguments)
    assert redactor.text(f"the program printed {S}!") == "the program printed ***!"


def test_arguments_without_secrets_teach_nothing() -> None:
    redactor = Redactor()
    arguments: JSON = {
        "image": "alpine:3.20",
        "env": {"MODE": "fast-mode"},
        "command": ["echo", "hello-world"],
        "tail": 200,
        "all": True,
    }
    redactor.learn_arguments(arguments)
    text = "alpine:3.20 fast-mode echo hello-world 200"
    assert redactor.text(text) == text


def test_learned_values_are_bounded_and_those_of_the_process_stay() -> None:
    redactor = Redactor([S])
    for number in range(2_100):
        redactor.learn(f"value-{number:05d}-x")
    assert redactor.text(f"{S} value-02099-x") == "*** ***"
    assert redactor.text("value-00001-x") == "value-00001-x"


def test_very_long_value_is_masked_whole() -> None:
    value = some(40_000)
    assert Redactor([value]).text(f"<{value}>") == "<***>"


def test_learning_while_others_redact_is_safe() -> None:
    redactor = Redactor()
    failures: list[BaseException] = []

    def work(which: int) -> None:
        try:
            for number in range(150):
                redactor.learn(f"secret-{which}-{number:04d}")
                assert redactor.text(f"x secret-{which}-{number:04d}") == "x ***"
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_json_text_with_a_learned_value_behind_an_escape_stays_json() -> None:
    redactor = Redactor(["n0tAnyW0rd", ODD])
    masked = redactor.text(json.dumps({"log": "first\n0tAnyW0rd", "odd": f"a{ODD}b"}))
    assert json.loads(masked) == {"log": "first\n***", "odd": "a***b"}


# --- JSON values ----------------------------------------------------------------------------------------------------


def test_json_value_is_masked_by_name_by_pair_and_by_shape() -> None:
    value: JSON = {
        "id": 7,
        "running": True,
        "health": None,
        "ratio": 0.5,
        "env": ["PATH=/bin", f"DB_PASSWORD={S} and more"],
        "labels": {"com.example.token": S, "com.example.name": "web"},
        "list": [{"name": "API_KEY", "value": S}, {"name": "MODE", "value": "fast"}],
        "command": ["mysql", "--password", S, "x"],
        "secrets": [S, "b"],
        "auth": {"user": "joe", "password": S, "pin": 5},
        "text": f"go to https://joe:{S}@host/",
        "password": "",
    }
    before = copy.deepcopy(value)
    assert Redactor().value(value) == {
        "id": 7,
        "running": True,
        "health": None,
        "ratio": 0.5,
        "env": ["PATH=/bin", "DB_PASSWORD=***"],
        "labels": {"com.example.token": MASK, "com.example.name": "web"},
        "list": [{"name": "API_KEY", "value": MASK}, {"name": "MODE", "value": "fast"}],
        "command": ["mysql", "--password", MASK, "x"],
        "secrets": [MASK, MASK],
        "auth": {"user": "joe", "password": MASK, "pin": 5},
        "text": "go to https://joe:***@host/",
        "password": "",
    }
    assert value == before


def test_secret_keys_are_masked_and_none_is_lost() -> None:
    other = S[::-1]
    masked = Redactor([S, other]).value({S: 1, other: 2})
    assert masked == {MASK: 1, f"{MASK} (2)": 2}


def test_json_value_nested_very_deeply_is_masked_rather_than_an_error() -> None:
    value: JSON = S
    for _ in range(sys.getrecursionlimit() - 200):
        value = [value]
    redactor = Redactor()
    redactor.learn_arguments(value)
    masked = redactor.value(value)
    while isinstance(masked, list):
        masked = masked[0]
    assert masked == MASK


# --- control characters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 日本 👍🏽 \t x\n", "plain é 日本 👍🏽 \t x\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq data\x1b\\after", "after"),
        ("\x1b]0;never ended\nnext", "0;never ended\nnext"),
        ("a\x1b[", "a"),
        ("a\x1b", "a"),
        ("\x1b(Bx", "x"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("a\x07\x08\x7f\x85b", "ab"),
        ("a\u202eb\u2066c\u200bd\U000e0041e", "abcde"),
        ("a\u2028b", "a\nb"),
    ],
)
def test_control_characters_go_and_text_stays(text: str, expected: str) -> None:
    assert strip_controls(text) == expected


@given(
    st.text(alphabet=st.characters(), max_size=200)
    | st.text(alphabet="\x1b[]P\\;m0\x07\x9b\x9c\r\nab\x00\ud800\u202e", max_size=60)
)
def test_stripping_controls_leaves_none_and_is_idempotent(text: str) -> None:
    stripped = strip_controls(text)
    assert strip_controls(stripped) == stripped
    assert not [
        character
        for character in stripped
        if (ord(character) < 32 and character not in "\n\t") or 0x7F <= ord(character) < 0xA0
    ]
    stripped.encode("utf-8")


# --- properties -----------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *"\"'`\\,;:&?=@/-|>{}[]()<$ \t\n\r",
        "\\n",
        '\\"',
        '\\\\"',
        "***",
        "PASSWORD",
        "password",
        "token",
        "API_KEY",
        "--token",
        "--password ",
        "ENV ",
        "name",
        "value",
        "id=",
        "x",
        "7",
        "://",
        "user:",
        "@host",
        "?sig=",
        "Authorization: ",
        "Bearer ",
        "Basic ",
        "Cookie: ",
        "curl -u ",
        "<password>",
        "</",
        "sha256:",
        "true",
        "null",
        f"{DASHES}BEGIN PRIVATE KEY{DASHES}",
        f"{DASHES}END PRIVATE KEY{DASHES}",
        "A" * 20,
        "MII" + "b" * 61,
        "Zx9" * 9,
        "é",
        "\x00",
        "\ud800",
        TOKENS["GitHub personal"],
        TOKENS["JWT"],
        TOKENS["OpenAI"],
        TOKENS["AWS access key id"],
    ]
)
MESSY = st.lists(PIECES, max_size=24).map("".join) | st.text(max_size=200)
SECRET = st.text(
    alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=7, max_size=40
).map(lambda text: f"k7{text}Z")
LEAVES = st.none() | st.booleans() | st.integers() | MESSY
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MESSY, inner, max_size=4), max_leaves=12
)


@settings(max_examples=600, deadline=None)
@given(MESSY)
def test_masking_twice_is_masking_once(text: str) -> None:
    once = Redactor().text(text)
    assert Redactor().text(once) == once


@settings(max_examples=300, deadline=None)
@given(MESSY, SECRET)
def test_masking_twice_is_masking_once_with_learned_values(text: str, secret: str) -> None:
    redactor = Redactor([secret])
    once = redactor.text(f"{text}{secret}{text}")
    assert redactor.text(once) == once


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_json_value_keeps_its_form_and_masking_it_twice_is_masking_it_once(value: JSON) -> None:
    redactor = Redactor()
    once = redactor.value(value)
    assert redactor.value(once) == once
    assert type(once) is type(value)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_json_text_stays_json(value: JSON) -> None:
    for ascii_only in (True, False):
        json.loads(Redactor().text(json.dumps(value, ensure_ascii=ascii_only)))


@settings(max_examples=300, deadline=None)
@given(MESSY, SECRET, MESSY)
def test_planted_value_never_survives(before: str, secret: str, after: str) -> None:
    redactor = Redactor()
    redactor.learn(secret)
    assert secret not in redactor.text(before + secret + after)
    assert secret not in redactor.lines().line(before + secret + after)
    masked = redactor.value({before: [after + secret], secret: {"x": f"{secret}{before}"}, "n": 1})
    assert secret not in str(masked)
    assert json.dumps(secret)[1:-1] not in json.dumps(masked)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSY, max_size=12))
def test_lines_of_a_stream_never_raise(texts: list[str]) -> None:
    lines = Redactor([S]).lines()
    for text in texts:
        assert S not in lines.line(text + S)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_learning_from_any_arguments_never_raises(value: JSON) -> None:
    redactor = Redactor()
    redactor.learn_arguments(value)
    redactor.text("text")


# --- work grows with the text, not with its square ------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "token",
        "token=",
        "token: ",
        "-",
        "\\",
        '\\"',
        '"token":',
        "'token='",
        "://a:",
        "://",
        "@",
        "?a=",
        "&token=",
        "eyJ",
        "eyJ.",
        "sk-",
        "A" * 40,
        f"{DASHES}BEGIN PRIVATE KEY{DASHES}",
        f"{DASHES}END PRIVATE KEY{DASHES}",
        "AAAAAAAAAAAAAAAAAAAAAAAA\n",
        "\n\n",
        "name: token\nvalue",
        "name",
        "Authorization: ",
        "Bearer ",
        "Cookie: a=",
        'Cookie: a="',
        "curl -u ",
        "<password>",
        "<token ",
        "--token ",
        "ENV TOKEN ",
        "token:|\n ",
        "`token=",
        "1",
        "/",
        ",token",
        "token =\t",
        "password: x ",
    ],
)
def test_adversarial_text_of_some_hundred_kilobytes_is_finished(unit: str) -> None:
    # With quadratic work this would take minutes, and the run's own time limit would end it.
    text = unit * (300_000 // len(unit))
    Redactor([S]).text(text)
    strip_controls(text)


@pytest.mark.parametrize("unit", ["\x1b]", "\x1b[", "\x9d", "\x1bP;", "\r", "\x1b]\x1b", "\x1b[0;"])
def test_adversarial_escapes_are_finished(unit: str) -> None:
    assert "\x1b" not in strip_controls(unit * 200_000)


def test_hints_let_every_secret_name_through() -> None:
    assert all(redact._NAME_HINTS.search(name.lower()) for name in SECRET_NAMES)
