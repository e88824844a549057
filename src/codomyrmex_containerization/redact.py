"""Which parts of a text are secrets, and how does it read without them?

Three sources of knowledge, strongest first: exact values that were learned (from the process, from a call's arguments,
from an environment), also in their JSON, URL, base64 and hexadecimal spelling; shapes that give themselves away (PEM
keys, passwords in URLs, tokens with a known prefix); and names (`DB_PASSWORD=x`, `"token": "x"`, `--password x`). The
name stays, the value becomes `***`. Masking twice is masking once, and JSON stays JSON.
Remove control characters first (`strip_controls`): an escape sequence inside a token would hide it.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import quote, quote_plus, unquote

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Sink: TypeAlias = Callable[[str], None]

MASK = "***"

_LEARNED_MAX = 2_000
_LEARN_MIN_CHARS = 6
_ENCODED_MIN_CHARS = 8
_LONG_LINE_CHARS = 12
_PIECE_CHARS = 4_096
_PIECES_MAX = 64
_FEW_NEEDLES = 256
_SHORT_TEXT_CHARS = 2_000
_ROUNDS_MAX = 8
_DEPTH_MAX = 200


# --- control characters ---------------------------------------------------------------------------------------------

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e01ef]"
)
_SEQUENCE = re.compile(
    "(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\n\x80-\x9f]*+(?:\x07|\x1b\\\\|\x9c)"  # OSC, DCS, SOS, PM, APC with their end
    "|(?:\x1b\\[|\x9b)[0-?]*+[ -/]*+[@-~]?"  # CSI, also cut short
    "|\x1b[ -/]*+[0-~]?"  # every other escape, also cut short; an unended OSC loses its introducer only, so its text stays visible
)


def _visible(match: re.Match[str]) -> str:
    character = match[0]
    if character in "\r\u2028\u2029":
        return "\n"
    return "\ufffd" if character == "\x00" or "\ud800" <= character <= "\udfff" else ""


def strip_controls(text: str) -> str:
    """Remove terminal escapes, control, bidirectional and invisible characters; keep newline and tab.

    CR LF and a lone CR become a newline; NUL and lone surrogates become U+FFFD.
    """
    if not _CONTROL.search(text):
        return text
    return _CONTROL.sub(_visible, _SEQUENCE.sub("", text).replace("\r\n", "\n"))


# --- names ----------------------------------------------------------------------------------------------------------


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PASSWORD_WORDS = _set("password passwords passwd passphrase passphrases passcode passwort kennwort pgpassword")
_SECRET_WORDS = _PASSWORD_WORDS | _set(
    "secret secrets token credential credentials creds mnemonic apikey apikeys secretkey accesskey privatekey "
    "sshkey authkey masterkey signingkey accountkey encryptionkey sharedaccesskey sshpass dbpass userpass rootpass "
    "mysqlpass ldappass smtppass dockerconfigjson dockercfg"
)
_SECRET_LAST_WORDS = _set("auth authorization bearer cookie otp totp pwd")
_SECRET_LAST_OF_SEVERAL = _set("pass salt")
_SECRET_ENDINGS = (
    "password",
    "passwd",
    "passphrase",
    "token",
    "secret",
    "apikey",
    "secretkey",
    "accesskey",
    "privatekey",
)
_KEYS_OF = _set(
    "api private secret access encryption encrypt decryption signing sign master account storage ssh deploy shared "
    "session service subscription app application crypt crypto cipher aes hmac jwt jwe cookie webhook auth admin "
    "consumer license licence integration ingest provisioning recovery backup sas functions bot wallet root"
)
_HARMLESS_LAST_WORDS = _set(
    "file files path paths dir directory folder name names id ids type types url urls uri uris endpoint endpoints "
    "host hosts port count counts length len size limit limits max min ttl expiry expires expiration expired age "
    "lifetime timeout seconds minutes policy policies enabled disabled required allowed supported provider "
    "providers method methods mode algorithm alg version versions format prefix suffix hint label labels "
    "description status state index usage stdin source src ref refs parallelism rotation created updated at on in "
    "by from to store manager driver backend server helper helpers plugin sock socket realm scheme issuer audience "
    "scope scopes user username header headers field env var variable strength change prompt attempts retries error "
    "errors message class kind namespace arn region domain fingerprint checksum digest authentication tokenizer tokenizers"
)
_HARMLESS_WORDS = _set("public publishable")
_HARMLESS_NAMES = _set("pwd oldpwd oauth total_tokens max_tokens")


@lru_cache(maxsize=8_192)
def _is_secret(name: str) -> bool:
    if name.strip("-._ ").lower() in _HARMLESS_NAMES:
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _HARMLESS_LAST_WORDS or not _HARMLESS_WORDS.isdisjoint(words):
        return False
    if not _SECRET_WORDS.isdisjoint(words) or any(word.endswith(_SECRET_ENDINGS) for word in words):
        return True
    if (
        words[-1] in _SECRET_LAST_WORDS
        or words == ["pass"]
        or (len(words) > 1 and words[-1] in _SECRET_LAST_OF_SEVERAL)
    ):
        return True
    pairs = itertools.pairwise(words)
    return any(
        (last in ("key", "keys") and first in _KEYS_OF) or (first, last) == ("connection", "string")
        for first, last in pairs
    )


def is_secret_name(name: str) -> bool:
    """Say whether a variable, key, header or flag of this name holds a secret: `DB_PASSWORD`, `X-Api-Key`, `clientSecret`.

    The last word decides against it: `PASSWORD_FILE` is a path, `token_count` a number, `client_secret_id` an identifier.
    """
    return _is_secret(name[-128:])


@lru_cache(maxsize=2_048)
def _is_password_name(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name[-128:])]
    return any(word in _PASSWORD_WORDS or word.endswith(("password", "passwd", "pass", "pwd")) for word in words)


# A text without any of these (lower case) has no name that `is_secret_name` accepts.
_NAME_HINTS = re.compile(
    "pass|pwd|secret|token|key|cred|auth|cookie|bearer|salt|otp|mnemonic|connection|dockerc|kennwort|identified by"
)


# --- PEM ------------------------------------------------------------------------------------------------------------

_PEM_BEGIN = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_PEM_END = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_PEM_GAP = r"(?:\s|\\+[nr])"
_PEM_CUT_BODY = re.compile(
    rf"(?:{_PEM_GAP}++[A-Za-z-]{{2,30}}: [^\n\\\"]*+)*+(?:{_PEM_GAP}*+[A-Za-z0-9+/=]{{20,}}+)++(?:{_PEM_GAP}++[A-Za-z0-9+/=]++)?"
)
# An escape such as `\n` is matched to be passed over: half of one would break JSON.
_PEM_CHUNK = re.compile(
    r"\\(?:u[0-9a-fA-F]{4}|[^\n])|[A-Za-z0-9+/]{16,}+={0,2}"
    r"|(?:(?<![A-Za-z0-9+/=])|(?<=\\[nr]))[A-Za-z0-9+/]{2,15}={1,2}(?!=)"
)
_PEM_LONG_CHUNK = re.compile(r"[A-Za-z0-9+/=]{16}")
_PEM_TAIL = re.compile(r"[\s|]*[A-Za-z0-9+/=]{1,80}\s*")
_PEM_BLOCK_MAX_CHARS = 65_536


def _mask_pem(text: str, sink: Sink | None) -> str:
    ends = [(match.start(), match.end()) for match in _PEM_END.finditer(text)]
    begins = list(_PEM_BEGIN.finditer(text))
    output: list[str] = []
    position = 0
    next_end = 0
    for number, begin in enumerate(begins):
        while next_end < len(ends) and ends[next_end][0] < begin.end():
            output.append(_without_orphan_tail(text[position : ends[next_end][0]]))
            position = ends[next_end][1]
            next_end += 1
        following = begins[number + 1].start() if number + 1 < len(begins) else len(text)
        output.append(text[position : begin.start()])
        if (
            next_end < len(ends)
            and ends[next_end][0] < following
            and ends[next_end][0] - begin.end() <= _PEM_BLOCK_MAX_CHARS
        ):
            body = text[begin.end() : ends[next_end][0]]
            # A quote inside means the block is spread over several strings: keep what separates them.
            output.append(MASK + _PEM_CHUNK.sub(_mask_chunk, body) + MASK if '"' in body else MASK)
            _tell(sink, body)
            position = ends[next_end][1]
            next_end += 1
            continue
        output.append(MASK)
        cut = _PEM_CUT_BODY.match(text, begin.end())
        position = cut.end() if cut else begin.end()
        _tell(sink, text[begin.end() : position])
    for start, end in ends[next_end:]:
        output.append(_without_orphan_tail(text[position:start]))
        position = end
    output.append(text[position:])
    return "".join(output)


def _without_orphan_tail(before: str) -> str:
    """Mask what precedes an END line whose BEGIN line was cut off: the lines of base64 right above it."""
    lines = before.split("\n")
    kept = len(lines) - 1
    while kept > 0 and _PEM_TAIL.fullmatch(lines[kept - 1]):
        kept -= 1
    string_before, quote_mark, rest = lines[-1].rpartition('"')
    return "\n".join([*lines[:kept], string_before + quote_mark + _PEM_CHUNK.sub(_mask_chunk, rest) + MASK])


def _mask_chunk(match: re.Match[str]) -> str:
    return match[0] if match[0].isdigit() or match[0][0] == "\\" else MASK


# --- URLs -----------------------------------------------------------------------------------------------------------

_NOT_A_DIGEST = r"@(?!sha(?:256|384|512):)"
_URL_PASSWORD = re.compile(rf"(://)([^\s:/@?#\"'<>\\]*+)(:)([^\s/?#\"<>\\]+){_NOT_A_DIGEST}")
_URL_ODD_PASSWORD = re.compile(rf"(://)([^\s:/@?#\"'<>\\]*+)(:)(?!\d{{0,5}}[/?#])([^\s\"'<>@]{{1,256}}){_NOT_A_DIGEST}")
_URL_TOKEN = re.compile(
    rf"(://)(?=[^\s:/@?#]{{0,200}}\d)(?=[^\s:/@?#]{{0,200}}[A-Za-z])([\w.~%+-]{{16,}}+){_NOT_A_DIGEST}"
)
_LOOKS_LIKE_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.~%+-]{16,256}")
_QUERY = re.compile(r"([?&](?:amp;)?|\\u0026)([\w.%\-\[\]]{1,128}+)=([^&#\s\"'<>\\]++)")
_QUERY_NAMES = _set(
    "sig signature x-amz-signature x-amz-security-token x-amz-credential x-goog-signature x-goog-credential "
    "x-oss-signature awsaccesskeyid googleaccessid access_token id_token refresh_token key-pair-id"
)


def _mask_urls(text: str, sink: Sink | None) -> str:
    def password(match: re.Match[str]) -> str:
        user, secret = match[2], match[4]
        _tell(sink, secret)
        _tell(sink, unquote(secret))
        if len(user) <= 256 and _LOOKS_LIKE_TOKEN.fullmatch(user) and secret in ("", "x-oauth-basic", MASK):
            _tell(sink, user)
            user = MASK
        return f"://{user}:{MASK}@"

    def token(match: re.Match[str]) -> str:
        _tell(sink, match[2])
        return f"://{MASK}@"

    text = _URL_PASSWORD.sub(password, text)
    text = _URL_ODD_PASSWORD.sub(password, text)
    return _URL_TOKEN.sub(token, text)


def _mask_queries(text: str, sink: Sink | None) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[2]
        if name.lower() not in _QUERY_NAMES and not is_secret_name(name):
            return match[0]
        _tell(sink, match[3])
        _tell(sink, unquote(match[3]))
        return f"{match[1]}{name}={MASK}"

    return _QUERY.sub(value, text)


# --- tokens that give themselves away -------------------------------------------------------------------------------

# Not inside a longer word, except behind an escape of JSON or of a URL (`\nghp_...`, `%20ghp_...`).
_EDGE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9a-fA-F]{4}))"
_HYPHEN_EDGE = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9a-fA-F]{4}))"


def _token_shapes(table: Iterable[tuple[str, str]]) -> tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]:
    return tuple((tuple(hints.split()), re.compile(pattern)) for hints, pattern in table)


# Each row: literal pieces one of which every match contains, and the pattern. A group named `kept` stays before the mask.
_TOKENS = _token_shapes(
    (
        ("AKIA ASIA ABIA ACCA", rf"{_EDGE}A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{{16}}(?![A-Za-z0-9])"),
        ("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{20,}"),
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{20,}"),
        (
            "glpat- gldt- glrt- glcbt- glptt- glft- glimt- glagent- gloas- glsoat- glffct-",
            r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat|ffct)-[\w.=-]{16,}",
        ),
        ("GR1348941", r"GR1348941[\w-]{18,}"),
        ("xoxa xoxb xoxe xoxo xoxp xoxr xoxs", r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}"),
        ("xapp-", r"xapp-\d-[A-Za-z0-9-]{10,}"),
        ("hooks.slack", r"(?P<kept>hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/)[\w/+%-]{16,}"),
        ("/api/webhooks/", r"(?P<kept>/api/webhooks/\d{5,25}/)[\w-]{30,}"),
        (":AA", rf"{_EDGE}\d{{7,11}}:AA[\w-]{{32,34}}(?![\w-])"),
        ("AIza", rf"{_EDGE}AIza[\w-]{{30,}}"),
        ("ya29.", rf"{_EDGE}ya29\.[\w.-]{{20,}}"),
        ("GOCSPX-", r"GOCSPX-[\w-]{20,}"),
        ("1//0", rf"{_EDGE}1//0[\w-]{{30,}}"),
        ("eyJ", rf"{_EDGE}eyJ[\w-]{{8,}}+(?:\.[\w-]*+){{2,4}}"),
        ("npm_", rf"{_EDGE}npm_[A-Za-z0-9]{{30,}}"),
        ("pypi-AgE", r"pypi-AgE[\w-]{20,}"),
        ("sk_live_ sk_test_ rk_live_ rk_test_", rf"{_EDGE}[sr]k_(?:live|test)_[A-Za-z0-9]{{16,}}"),
        ("whsec_", r"whsec_[A-Za-z0-9+/=]{20,}"),
        ("sk-ant-", rf"{_HYPHEN_EDGE}sk-ant-[\w-]{{20,}}"),
        ("sk-", rf"{_HYPHEN_EDGE}sk-(?=[\w-]{{0,200}}[0-9])(?=[\w-]{{0,200}}[A-Z])[\w-]{{20,}}"),
        ("dckr_pat_ dckr_oat_", r"dckr_[po]at_[\w-]{20,}"),
        ("hf_", rf"{_EDGE}hf_[A-Za-z0-9]{{30,}}"),
        ("AGE-SECRET-KEY-", r"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{30,}"),
        ("SG.", rf"{_EDGE}SG\.[\w-]{{16,}}\.[\w-]{{16,}}"),
        ("dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[a-f0-9]{40,}"),
        ("hvs. hvb. hvr.", rf"{_EDGE}hv[sbr]\.[\w-]{{20,}}"),
        ("dapi", rf"{_EDGE}dapi[a-f0-9]{{32}}(?![a-f0-9])"),
        ("shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),
        ("glsa_ glc_", rf"{_EDGE}gl(?:sa|c)_[A-Za-z0-9_=+/-]{{30,}}"),
        ("lin_api_", r"lin_api_[A-Za-z0-9]{30,}"),
        ("sntrys_ sntryu_", r"sntry[su]_[A-Za-z0-9_=+/-]{30,}"),
        ("PMAK-", r"PMAK-[a-f0-9-]{30,}"),
        ("rubygems_", r"rubygems_[a-f0-9]{40,}"),
        (".atlasv1.", rf"{_EDGE}[A-Za-z0-9]{{14}}\.atlasv1\.[\w-]{{40,}}"),
        ("8Q~", rf"{_EDGE}[\w~.-]{{3}}8Q~[\w~.-]{{31,34}}"),
        ("gsk_", rf"{_EDGE}gsk_[A-Za-z0-9]{{40,}}"),
        ("ATATT3xFf", r"ATATT3xFf[\w=-]{40,}"),
        ("tskey-", r"tskey-(?:auth|api|client|scim|webhook)-[\w-]{16,}"),
        ("sbp_", rf"{_EDGE}sbp_[a-f0-9]{{40}}"),
        ("pscale_tkn_", r"pscale_(?:tkn|pw|oauth)_[\w.=-]{30,}"),
    )
)


def _alternation(words: Iterable[str]) -> str:
    """Return a pattern that finds any of the words, their common beginnings joined, so that a miss costs one look."""
    by_first: dict[str, list[str]] = {}
    for word in sorted(set(words)):
        by_first.setdefault(word[:1], []).append(word[1:])
    branches = [
        re.escape(first) + (re.escape(rest[0]) if len(rest) == 1 else "" if "" in rest else f"(?:{_alternation(rest)})")
        for first, rest in by_first.items()
    ]
    return "|".join(branches)


_TOKEN_HINTS = re.compile(_alternation(hint for hints, _ in _TOKENS for hint in hints))


def _mask_tokens(text: str, sink: Sink | None) -> str:
    def mask(match: re.Match[str]) -> str:
        kept = match.groupdict().get("kept") or ""
        _tell(sink, match[0][len(kept) :])
        return kept + MASK

    for hints, pattern in _TOKENS:
        if any(hint in text for hint in hints):
            text = pattern.sub(mask, text)
    return text


# --- headers --------------------------------------------------------------------------------------------------------

_AUTHORIZATION = re.compile(
    r"(?i)(authorization(?:\\*+[\"'])?[ \t]*+[:=][ \t]*+(?:\\*+[\"'])?"
    r"(?:bearer|basic|token|negotiate|ntlm|aws4-hmac-sha256|apikey|bot|hawk|oauth)[ \t]++)"
    r"([^\s\"'\\,]++(?:,? [^\r\n\"'\\]*)?)"
)
_BEARER = re.compile(r"(?i)\b(bearer[ \t]++)((?=[^\s\"']{0,300}\d)[\w.~+/-]{16,}+=*+)")
_BASIC = re.compile(r"\b(Basic[ \t]++)([A-Za-z0-9+/_-]{8,}+={0,2})")
_COOKIE = re.compile(
    r"(?i)\b((?:set-)?cookie2?(?:\\*+[\"'])?[ \t]*+:[ \t]*+(?:\\*+[\"'])?)"
    r"([^\s=;\"'\\]{1,256}+=(?:[^\r\n\"'\\]|(?<==)\"[^\"\r\n\\,:\]}\s][^\"\r\n\\]*\"(?=;|\s|$))*+)"
)
_CURL_USER = re.compile(
    r"(\bcurl\b[^\n]{0,300}?[ \t](?:-u|--user|--proxy-user|-U)[ =]?[\"']?[^\s:\"']{1,128}:)([^\s\"'\\]++)"
)


_NETRC = re.compile(r"(\blogin[ \t]++[^\s\"'\\]{1,128}+[ \t]++password[ \t]++)([^\s\"'\\]++)")
_SQL = re.compile(r"(?i)(\b(?:identified[ \t]+by|password)[ \t]++')([^'\"\\\n]++)(?=')")


def _mask_headers(text: str, low: str, sink: Sink | None) -> str:
    def second_group(match: re.Match[str]) -> str:
        _tell(sink, match[2])
        return match[1] + MASK

    def basic(match: re.Match[str]) -> str:
        try:
            decoded = base64.b64decode(match[2] + "=" * (-len(match[2]) % 4), altchars=b"-_")
        except (binascii.Error, ValueError):
            return match[0]
        return second_group(match) if b":" in decoded else match[0]

    if "authorization" in low:
        text = _AUTHORIZATION.sub(second_group, text)
    if "bearer" in low:
        text = _BEARER.sub(second_group, text)
    if "Basic" in text:
        text = _BASIC.sub(basic, text)
    if "cookie" in low:
        text = _COOKIE.sub(second_group, text)
    if "login" in low and "password" in low:
        text = _NETRC.sub(second_group, text)
    if "'" in text and ("identified" in low or "password" in low):
        text = _SQL.sub(second_group, text)
    if "curl" in text:
        text = _CURL_USER.sub(second_group, text)
    return text


# --- names and their values, line by line ---------------------------------------------------------------------------

_NAMED = re.compile(
    r"(?<![\w.\-])(?P<name>[\w.\-]++)(?P<close>\\*+[\"'`])?\]?(?P<space>[ \t]*+)"
    r"(?P<sep>:=|=>|\?=|\+=|={1,3}|:)(?![:=>])(?P<gap>[ \t]*+)(?=\S)"
)
_FLAG = re.compile(
    r"(?<![\w\-])--(?P<name>[A-Za-z][\w\-]*+)(?:[ \t]++|(?P<close>\\*+[\"']),[ \t]*+(?=\\*[\"']))(?=[^\s\-])"
)
_DOCKERFILE = re.compile(r"\b(?:ENV|ARG)[ \t]++(?P<name>[\w.\-]++)[ \t]++(?=[^\s=:])")
_ELEMENT = re.compile(
    r"<(?P<name>[\w.:\-]{1,128}+)(?:\s[^<>]{0,200})?>(?P<value>(?:\\.|[^<>\"\\]|\"(?![\s,:\]}]|$))++)</"
)
_NAME_VALUE = re.compile(
    r"(?i)\bname(?P<q>\\*[\"'])?\s*+[:=]\s*+(?:\\*[\"'])?(?P<name>[\w.\-]++)(?:\\*[\"'])?"
    r"\s*+,?\s*+(?:\\*[\"'])?\bvalue(?P<close>\\*[\"'])?\s*+(?P<sep>[:=])(?P<gap>[ \t]*+)"
    r"(?=\S)"
)
_OPEN_QUOTE = re.compile(r"(?<!\\)\\{0,7}[\"'`]\Z")
_QUOTE = re.compile(r"\\{0,7}[\"'`]")
# Ends before a closing quote and before `,name=`.
_RUN = re.compile(r"(?:[^\s\"'`\\,;&]|[,;&](?![\w.\-]{1,64}=)|\\*+[\"'`](?![\s,;:)\]}\\]|$)|\\++(?![\"'`\\]))++")
_PLAIN_SCALAR = re.compile(r"[^\s,}\]\"'\\][^,}\]\n\r\"\\]*")
_JSON_OTHER = re.compile(r"(?:true|false|null|none|nil)\b|[\[{]", re.IGNORECASE)
_LITERALS = _set("true false null none nil undefined yes no on off ** | > |- >- |+ >+ nan") | {""}
_REFERENCE = re.compile(
    r"\$[A-Z_][A-Z0-9_]*|\$\{[A-Za-z_]\w*\}?|\$\(\w[\w.]*\)?|\$\{\{.*|\{\{.*|<[a-z][a-z _-]*>?|%[A-Z_]+%"
)
_NEXT_WORD = re.compile(r"[ \t]+[\w(\[]")
_PROSE_WORD = re.compile(r"[A-Za-z][a-z']*[.,;:!?]?")
_PROSE_ALONE = _set(
    "required missing invalid expired denied failed failure rejected accepted unset empty found optional needed "
    "present absent ok done incorrect wrong unknown unauthorized forbidden valid mismatch unsupported disabled "
    "enabled success string"
)
_FLAG_PROSE = _set(
    "to is are or and flag option for in with was not must cannot can requires parameter argument if instead as "
    "from via when the a"
)
_GRAMMAR_BEFORE = re.compile(
    r"(?i)(?:unexpected|invalid|illegal|expected|unknown|missing|bad|next|current|found|reserved|offending)\s+\Z"
)
_LINE_START = re.compile(r"(?:[\s+\-#>*]|export\s)*")
_BLOCK_SCALAR = re.compile(
    r"(?P<indent>[ \t]*+)(?:- )*+[\"']?(?P<name>[\w.\-]{1,128}+)[\"']?:[ \t]+[|>][+\-0-9]{0,2}[ \t]*\r?"
)


class _Edits:
    """The text of one line (or of a whole) in which parts are replaced from left to right."""

    def __init__(self, text: str, sink: Sink | None) -> None:
        self.text = text
        self.done = 0
        self.first_quote = text.find('"')
        self._sink = sink
        self._output: list[str] = []

    def mask(self, start: int, end: int, mask: str = MASK) -> None:
        if start >= end:
            return
        _tell(self._sink, self.text[start:end])
        self._output += (self.text[self.done : start], mask)
        self.done = end

    def result(self) -> str:
        return "".join((*self._output, self.text[self.done :])) if self._output else self.text


def _tell(sink: Sink | None, secret: str) -> None:
    if sink is not None:
        sink(secret)


# A double quote here closes a string, whatever was quoted inside it.
_CLOSING = re.compile(r"(?<!\\)(?:\\\\)*+\"(?=[\s,:\]}]|$)")
_OPENED = re.compile(r"[^\s,:;)\]}]")


def _opening_quote(line: str, start: int, *, like: str | None) -> re.Match[str] | None:
    """Return the quote at this place when it opens a string: it is like the one before it, or no delimiter follows."""
    mark = _QUOTE.match(line, start)
    if not mark:
        return None
    sure = like is not None and like[-1] == mark[0][-1] and _depth(len(like) - 1) == _depth(len(mark[0]) - 1)
    return mark if sure or _OPENED.match(line, mark.end()) else None


def _mask_quoted(edits: _Edits, start: int, mark: str) -> None:
    """Mask up to the quote that ends the string, or to the end of the line where none does."""
    edits.mask(start, _value_end(edits, start, mark))


def _value_end(edits: _Edits, start: int, mark: str) -> int:
    found = _end_of_quoted(edits.text, start, mark)
    end = _line_end(edits.text, start) if found is None else found
    if mark[-1] == '"' or not 0 <= edits.first_quote < start:
        return end
    closing = _CLOSING.search(edits.text, start, end)
    return closing.start() if closing else end


def _depth(backslashes: int) -> int:
    """Return how many strings deep a quote behind so many backslashes stands: `"` 0, `\"` 1, `\\\"` 2, but `\\"` 0 again."""
    depth = 0
    while backslashes % 2:
        backslashes //= 2
        depth += 1
    return depth


def _backslashes(depth: int) -> int:
    return (1 << depth) - 1


def _end_of_quoted(text: str, start: int, mark: str) -> int | None:
    """Return where the string that opened with `mark` (a quote behind zero or more backslashes) ends; None if not on its line."""
    depth, character = _depth(len(mark) - 1), mark[-1]
    position = start
    while (found := text.find(character, position)) >= 0 and text.find("\n", position, found) < 0:
        run = found
        while run > start and text[run - 1] == "\\":
            run -= 1
        here = _depth(found - run)
        doubled = mark == "'" and found > start and text[found + 1 : found + 2] == "'"  # YAML writes it so
        if here <= depth and not doubled:
            return found - _backslashes(here)
        position = found + 2 if doubled else found + 1
    return None


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    while end > position and text[end - 1] in " \t\r":
        end -= 1
    return end


_ESCAPE_REST = re.compile(r"u[0-9a-fA-F]{4}|[nrtbf]")


def _is_secret_here(line: str, match: re.Match[str]) -> str:
    """Return the name as the text means it, or "" where it is not a secret's."""
    name, start = match["name"], match.start("name")
    if start and line[start - 1] == "\\":  # the end of an escape looks like the beginning of the name
        escaped = _ESCAPE_REST.match(name)
        name = name[escaped.end() :] if escaped and is_secret_name(name[escaped.end() :]) else name
    if not is_secret_name(name) or (start and line[start - 1] in "?&"):
        return ""
    if match["sep"] == ":" and not match["close"] and name.lower() in ("pass", "cookie", "set-cookie"):
        return ""  # a test's outcome, or a header with a rule of its own
    if name.lower() == "pass" and match["space"]:
        return ""
    if name.lower() in ("token", "secret") and _GRAMMAR_BEFORE.search(line[max(0, start - 14) : start]):
        return ""
    return name


def _is_prose(line: str, run: str, end: int) -> bool:
    word = run.lower().rstrip(".,;:!?)")
    return bool(_PROSE_WORD.fullmatch(run)) and (word in _PROSE_ALONE or bool(_NEXT_WORD.match(line, end)))


def _trimmed(run: str) -> str:
    return run.rstrip(")]},;") or run


def _is_harmless_value(value: str, name: str) -> bool:
    if value.lower() in _LITERALS or _REFERENCE.fullmatch(value):
        return True
    return value.isdigit() and len(value) <= 4 and not _is_password_name(name)


def _mask_assignments(line: str, sink: Sink | None) -> str:
    edits = _Edits(line, sink)
    start_of_words = _LINE_START.match(line)
    first = start_of_words.end() if start_of_words else 0
    for match in _NAMED.finditer(line):
        if match.start() < edits.done:
            continue
        name = _is_secret_here(line, match)
        if name:
            _mask_assignment(edits, match, name, anchored=match.start() <= first)
    return edits.result()


def _mask_assignment(edits: _Edits, match: re.Match[str], name: str, *, anchored: bool) -> None:
    line, start = edits.text, match.end()
    colon = match["sep"] == ":"
    opened = None if match["close"] else _OPEN_QUOTE.search(line[max(0, match.start() - 8) : match.start()])
    mark = _opening_quote(line, start, like=match["close"] if colon else None)
    if mark and not (opened and mark[0] == opened[0]):
        _mask_quoted(edits, mark.end(), mark[0])
        return
    if _QUOTE.match(line, start):
        return
    if match["close"] and colon:
        _mask_bare_member(edits, start, match["close"], name)
        return
    if name.lower().endswith("authorization") and MASK in line[start : start + 40]:
        return
    if opened and not colon and name.isupper():
        end = _value_end(edits, start, opened[0])
        if not _is_harmless_value(line[start:end], name):
            edits.mask(start, end)
            return
    _mask_run(edits, match, name, anchored=anchored)


def _mask_bare_member(edits: _Edits, start: int, mark: str, name: str) -> None:
    """Mask the unquoted value of a quoted key, so that JSON stays JSON: a number becomes a string, a structure is left."""
    if _JSON_OTHER.match(edits.text, start):
        return
    scalar = _PLAIN_SCALAR.match(edits.text, start)
    if scalar:
        value = scalar[0].rstrip()
        if not _is_harmless_value(value, name):
            around = "\\" * _backslashes(_depth(len(mark) - 1)) + mark[-1]
            edits.mask(start, start + len(value), f"{around}{MASK}{around}")


def _in_go_map(line: str, match: re.Match[str]) -> bool:
    return line.rfind("map[", max(0, match.start() - 300), match.start()) >= 0


def _mask_run(edits: _Edits, match: re.Match[str], name: str, *, anchored: bool) -> None:
    line, start = edits.text, match.end()
    colon = match["sep"] == ":"
    if colon and (line[start] in "[{" or line.startswith("//", start)):
        return
    tight = not match["gap"] and not match["space"]
    if colon and not match["gap"] and name == name.lower() and not (_is_password_name(name) or _in_go_map(line, match)):
        return  # an image reference or a namespace: `auth:1.2`
    run = _RUN.match(line, start)
    if not run:
        return
    value = _trimmed(run[0])
    if _is_harmless_value(value, name):
        return
    if (colon or not tight) and not (anchored and _is_password_name(name)) and _is_prose(line, run[0], run.end()):
        return
    whole_line = anchored and not tight and _is_password_name(name)
    edits.mask(start, _line_end(line, start) if whole_line and not _QUOTE.search(line, start) else start + len(value))


def _mask_after(
    pattern: re.Pattern[str], line: str, sink: Sink | None, *, to_line_end: bool, prose: frozenset[str]
) -> str:
    """Mask the value behind each secret name that the pattern finds (flags, `ENV name value`)."""
    edits = _Edits(line, sink)
    for match in pattern.finditer(line):
        start = match.end()
        if match.start() < edits.done or not is_secret_name(match["name"]):
            continue
        mark = _opening_quote(line, start, like=match.groupdict().get("close"))
        if mark:
            _mask_quoted(edits, mark.end(), mark[0])
            continue
        run = _RUN.match(line, start)
        if (
            not run
            or run[0].lower() in prose
            or run[0].startswith(("id=", "type=", "source=", "src="))
            or _is_harmless_value(run[0], match["name"])
        ):
            continue
        if to_line_end and _is_prose(line, run[0], run.end()):
            continue
        edits.mask(
            start,
            _line_end(line, start) if to_line_end and line.find('"', start) < 0 else start + len(_trimmed(run[0])),
        )
    return edits.result()


def _mask_elements(line: str, sink: Sink | None) -> str:
    edits = _Edits(line, sink)
    for match in _ELEMENT.finditer(line):
        if is_secret_name(match["name"]) and not _is_harmless_value(match["value"].strip(), match["name"]):
            edits.mask(match.start("value"), match.end("value"))
    return edits.result()


def _mask_name_value_pairs(text: str, sink: Sink | None) -> str:
    """Mask `"name": "DB_PASSWORD", "value": "x"`, as environments are written for Kubernetes."""
    edits = _Edits(text, sink)
    for match in _NAME_VALUE.finditer(text):
        if match.start() < edits.done or not is_secret_name(match["name"]):
            continue
        start = match.end()
        mark = _opening_quote(text, start, like=match["close"])
        if mark:
            _mask_quoted(edits, mark.end(), mark[0])
        elif match["close"]:
            _mask_bare_member(edits, start, match["close"], match["name"])
        elif run := _RUN.match(text, start):
            edits.mask(start, start + len(_trimmed(run[0])))
    return edits.result()


def _mask_line(line: str, sink: Sink | None) -> str:
    line = _mask_assignments(line, sink)
    if "--" in line:
        line = _mask_after(_FLAG, line, sink, to_line_end=False, prose=_FLAG_PROSE)
    if "ENV" in line or "ARG" in line:
        line = _mask_after(_DOCKERFILE, line, sink, to_line_end=True, prose=frozenset())
    if "</" in line:
        line = _mask_elements(line, sink)
    return line


def _block_indent(line: str) -> int | None:
    """Return how far a YAML block scalar's key is indented when the line opens one for a secret."""
    match = _BLOCK_SCALAR.fullmatch(line)
    return len(match["indent"]) if match and is_secret_name(match["name"]) else None


def _in_block(line: str, indent: int) -> bool:
    stripped = line.lstrip(" \t")
    return not stripped.strip() or len(line) - len(stripped) > indent


def _mask_block_line(line: str, sink: Sink | None) -> str:
    stripped = line.strip()
    if not stripped:
        return line
    _tell(sink, stripped)
    return line[: len(line) - len(line.lstrip())] + MASK + ("\r" if line.endswith("\r") else "")


def _mask_names(text: str, sink: Sink | None) -> str:
    lines = text.split("\n")
    indent: int | None = None
    for number, line in enumerate(lines):
        if indent is not None and _in_block(line, indent):
            lines[number] = _mask_block_line(line, sink)
            continue
        indent = None
        if _NAME_HINTS.search(line.lower()):
            indent = _block_indent(line)
            lines[number] = _mask_line(line, sink)
    return "\n".join(lines)


def _mask_shapes(text: str, sink: Sink | None = None) -> str:
    """Mask everything that gives itself away by shape or by name; tell the sink what was found."""
    if "PRIVATE KEY" in text:
        text = _mask_pem(text, sink)
    if "://" in text:
        text = _mask_urls(text, sink)
    if "=" in text and ("?" in text or "&" in text or "u0026" in text):
        text = _mask_queries(text, sink)
    if _TOKEN_HINTS.search(text):
        text = _mask_tokens(text, sink)
    low = text.lower()
    named = _NAME_HINTS.search(low)
    if named or "Basic" in text or "curl" in text:
        text = _mask_headers(text, low, sink)
    if named:
        text = _mask_names(text, sink)
        if "value" in low and "name" in low:
            text = _mask_name_value_pairs(text, sink)
    return text


def _is_suspicious(text: str) -> bool:
    """Say cheaply whether `_mask_shapes` could change the text."""
    return bool(
        "://" in text
        or "PRIVATE KEY" in text
        or ("=" in text and ("?" in text or "&" in text or "u0026" in text))
        or "Basic" in text
        or "curl" in text
        or _TOKEN_HINTS.search(text)
        or _NAME_HINTS.search(text.lower())
    )


# --- learned values -------------------------------------------------------------------------------------------------

_COMMON_VALUES = _set(
    "true false none null undefined enabled disabled required optional always default example password passwd "
    "secret secrets changeme change_me changeit letmein qwerty welcome admin administrator localhost postgres "
    "postgresql mysql mariadb mongodb redis rabbitmq guest docker ubuntu debian alpine busybox minio minioadmin "
    "elastic grafana keycloak wordpress nginx python server client production development staging testing string "
    "username anonymous unknown bearer private public system latest missing invalid github gitlab registry "
    "container containers database"
)
_SYSTEM_PATH = re.compile(
    r"~?/(?:run|var|etc|home|tmp|usr|opt|root|secrets|mnt|proc|dev|app|srv|data|workspace|bin|lib|Users)"
    r"(?:/[\w.@+ -]+)*/?|\.{1,2}/[\w.@+ /-]*"
)


def _is_worth_learning(value: str) -> bool:
    """Leave out what would shred ordinary text: short values, common words, short numbers, paths, one repeated character."""
    if (
        len(value) < _LEARN_MIN_CHARS
        or value.lower() in _COMMON_VALUES
        or len(set(value)) == 1
        or set(value) <= {"*", " "}
    ):
        return False
    if value.isdigit() and len(value) < 8:
        return False
    return not _SYSTEM_PATH.fullmatch(value) and not _REFERENCE.fullmatch(value)


def _base64_cores(data: bytes) -> Iterator[str]:
    """Yield the piece of base64 text that the bytes always produce, for each of the three ways they can be aligned in longer data."""
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data).rstrip(b"=")
        whole = ((shift + len(data)) * 8) // 6
        yield encoded[-(-shift * 8 // 6) : whole].decode("ascii")


def _spellings(value: str) -> frozenset[str]:
    """Return the value as it may stand in text: plain, in JSON, in Python, in URLs, and (long ones) in base64 and hexadecimal."""
    escaped = json.dumps(value)[1:-1]
    forms = {value, escaped, json.dumps(escaped)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    if not value.isalnum() or not value.isascii():
        quoted = quote(value, safe="", errors="replace")
        forms |= {
            quoted,
            re.sub("%..", lambda match: match[0].lower(), quoted),
            quote_plus(value, errors="replace"),
            quote(value, errors="replace"),
        }
        forms.add(value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;"))
        forms.add(value.replace("\n", "\r\n"))
    if len(value) >= _ENCODED_MIN_CHARS:
        data = value.encode("utf-8", "surrogatepass")
        for core in _base64_cores(data):
            forms |= {core, core.replace("+", "-").replace("/", "_")}
        forms |= {
            base64.b64encode(data).decode("ascii"),
            base64.urlsafe_b64encode(data).decode("ascii"),
            data.hex(),
            data.hex().upper(),
        }
    return frozenset(form for form in forms if len(form) >= _LEARN_MIN_CHARS)


class _Known:
    """The learned values: a bounded number of them, the server's own never pushed out by those of calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pinned: dict[str, frozenset[str]] = {}
        self._recent: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._needles: tuple[str, ...] | None = ()
        self._prefixes: dict[str, tuple[str, ...]] = {}

    def add(self, value: str, *, pinned: bool) -> None:
        with self._lock:
            if value in self._pinned:
                return
            if value in self._recent and not pinned:
                self._recent.move_to_end(value)
                return
            self._recent.pop(value, None)
            target: dict[str, frozenset[str]] = self._pinned if pinned else self._recent
            target[value] = _spellings(value)
            while len(self._recent) > _LEARNED_MAX:
                self._recent.popitem(last=False)
            self._needles = None

    def found_in(self, text: str) -> list[str]:
        """Return the spellings that occur in the text."""
        needles, prefixes = self._current()
        if not needles:
            return []
        if len(needles) <= (_FEW_NEEDLES if len(text) < _SHORT_TEXT_CHARS else 3 * _FEW_NEEDLES):
            return [needle for needle in needles if needle in text]
        windows = {text[start : start + _LEARN_MIN_CHARS] for start in range(len(text) - _LEARN_MIN_CHARS + 1)}
        return [needle for window in windows & prefixes.keys() for needle in prefixes[window] if needle in text]

    def _current(self) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
        with self._lock:
            if self._needles is None:
                forms = {form for spellings in (*self._pinned.values(), *self._recent.values()) for form in spellings}
                by_prefix: dict[str, list[str]] = {}
                for form in forms:
                    by_prefix.setdefault(form[:_LEARN_MIN_CHARS], []).append(form)
                self._needles = tuple(forms)
                self._prefixes = {prefix: tuple(rows) for prefix, rows in by_prefix.items()}
            return self._needles, self._prefixes


def _mask_found(text: str, needles: Iterable[str]) -> str:
    """Mask every occurrence; where two overlap, mask their union, so that neither's rest stays."""
    spans: list[tuple[int, int]] = []
    for needle in needles:
        start = text.find(needle)
        while start >= 0:
            # Half an escape (`\` of `\n`) would break JSON: let its letter stand.
            in_escape = needle[0] in "nrtbf" and text[start - 1 : start] == "\\"
            spans.append((start + in_escape, start + len(needle)))
            start = text.find(needle, start + len(needle))
    if not spans:
        return text
    output: list[str] = []
    done = 0
    for start, end in sorted(spans):
        if start > done or not output:
            output += (text[done:start], MASK)
        done = max(done, end)
    return "".join((*output, text[done:]))


_PAIR = re.compile(r"([\w.\-]{1,128})=(.*)", re.DOTALL)
_FLAG_ALONE = re.compile(r"--?[A-Za-z][\w\-]*")


def _named_pair(text: str) -> tuple[str, str] | None:
    """Return name and value of `NAME=value` where the whole text is that and the name is a secret's."""
    match = _PAIR.fullmatch(text) if "=" in text else None
    return (match[1], match[2]) if match and is_secret_name(match[1]) else None


class Redactor:
    """Takes secrets out of text and of JSON; safe to share between threads."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = _Known()
        for value in known:
            self._learn(value, pinned=True)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Redactor:
        """Return a redactor that knows the process's own secrets: values of secret names, and passwords in URL values."""
        redactor = cls()
        redactor._learn_environment(environ, pinned=True)
        return redactor

    def learn(self, value: str) -> None:
        """Mask this exact value from now on, and its lines when it has long ones; values that would shred ordinary text are ignored.

        Ignored are values below 6 characters, numbers below 8 digits, common words, paths and references such as `${NAME}`.
        The 2,000 values learned last are kept.
        """
        self._learn(value, pinned=False)

    def learn_named(self, mapping: Mapping[str, str]) -> None:
        """Learn the values of secret names, and passwords in URL values."""
        self._learn_environment(mapping, pinned=False)

    def learn_arguments(self, value: JSON) -> None:
        """Learn the secrets in a call's arguments: under secret keys, in `NAME=value` strings, behind flags, in URLs."""
        self._learn_json(value, "", 0)

    def text(self, text: str) -> str:
        """Return the text with every secret masked."""
        return self._settled(text, self._known.found_in(text))

    def value(self, value: JSON) -> JSON:
        """Return the JSON value with every secret masked, in keys too; numbers, booleans and null stay as they are."""
        strings: set[str] = set()
        _collect(value, strings, 0)
        whole = "\n".join(strings)
        needles = self._known.found_in(whole)
        if not needles and not _is_suspicious(whole):
            return value
        memo: dict[str, str] = {}

        def clean(text: str) -> str:
            if text not in memo:
                memo[text] = self._settled(text, needles)
            return memo[text]

        return _rewrite(value, clean, 0)

    def lines(self) -> LineRedactor:
        """Return a redactor for the lines of one stream, in their order."""
        return LineRedactor(self)

    def _settled(self, text: str, needles: list[str]) -> str:
        """Mask until nothing changes, so that masking what is masked changes nothing either."""
        for _ in range(_ROUNDS_MAX):
            masked = _mask_found(text, needles) if needles else text
            masked = _mask_shapes(masked)
            if masked == text:
                break
            text = masked
            needles = self._known.found_in(text)
        return text

    def _learn(self, value: str, *, pinned: bool) -> None:
        value = value.strip()
        pieces = (
            [value]
            if len(value) <= _PIECE_CHARS
            else [value[at : at + _PIECE_CHARS] for at in range(0, len(value), _PIECE_CHARS)][:_PIECES_MAX]
        )
        if "\n" in value:
            lines = [line.strip() for line in value.split("\n")[: _PIECES_MAX * 4]]
            pieces += [line for line in lines if len(line) >= _LONG_LINE_CHARS and not line.startswith("-----")]
        for piece in pieces:
            if _is_worth_learning(piece):
                self._known.add(piece, pinned=pinned)

    def _learn_environment(self, mapping: Mapping[str, str], *, pinned: bool) -> None:
        for name, value in mapping.items():
            if is_secret_name(name):
                self._learn(value, pinned=pinned)
            if "://" in value:
                _mask_urls(value, lambda secret: self._learn(secret, pinned=pinned))

    def _learn_found(self, text: str) -> None:
        """Learn what its shape gives away; a plain word may only look like a value, so it is not learned."""

        def sink(secret: str) -> None:
            if not (secret.isalpha() and secret.islower()) and MASK not in secret:
                self.learn(secret)

        if _is_suspicious(text):
            _mask_shapes(text, sink)

    def _learn_json(self, value: JSON, name: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            return
        if isinstance(value, str):
            pair = _named_pair(value)
            if name and is_secret_name(name):
                self.learn(value)
            if pair:
                self.learn(pair[1])
            self._learn_found(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._learn_json(item, _key_of(value, key), depth + 1)
        elif isinstance(value, list):
            for item, before in zip(value, [None, *value], strict=False):
                self._learn_json(
                    item, before if _is_secret_flag(before) and isinstance(before, str) else name, depth + 1
                )


def _is_secret_flag(value: JSON) -> bool:
    return (
        isinstance(value, str)
        and value.startswith("-")
        and bool(_FLAG_ALONE.fullmatch(value))
        and value.startswith("--")
        and is_secret_name(value)
    )


def _key_of(mapping: dict[str, JSON], key: str) -> str:
    """Return the name that a member's value belongs to: its key, or its neighbour `name` in `{"name": ..., "value": ...}`."""
    if key.lower() == "value":
        for other in ("name", "Name", "key", "Key"):
            name = mapping.get(other)
            if isinstance(name, str) and is_secret_name(name):
                return name
    return key


def _collect(value: JSON, strings: set[str], depth: int) -> None:
    if isinstance(value, str):
        strings.add(value)
    elif depth > _DEPTH_MAX:
        strings.add("token")  # sends the whole down the careful way
    elif isinstance(value, dict):
        strings.update(value)
        for item in value.values():
            if type(item) is str:
                strings.add(item)
            elif item is not None and type(item) is not int:
                _collect(item, strings, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _collect(item, strings, depth + 1)


def _rewrite(value: JSON, clean: Callable[[str], str], depth: int) -> JSON:
    if depth > _DEPTH_MAX:
        return MASK
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [
            _rewrite_item(item, before, clean, depth + 1) for item, before in zip(value, [None, *value], strict=False)
        ]
    if not isinstance(value, dict):
        return value
    output: dict[str, JSON] = {}
    for key, item in value.items():
        written = _unused(clean(key), output)
        secret = is_secret_name(_key_of(value, key)) or is_secret_name(written)
        output[written] = _masked_leaves(item, clean, depth + 1) if secret else _rewrite(item, clean, depth + 1)
    return output


def _rewrite_item(item: JSON, before: JSON, clean: Callable[[str], str], depth: int) -> JSON:
    if isinstance(item, str):
        if _is_secret_flag(before) and not item.startswith("-"):
            return MASK
        pair = _named_pair(item)
        return f"{pair[0]}={MASK}" if pair and pair[1] else clean(item)
    return _rewrite(item, clean, depth)


def _masked_leaves(value: JSON, clean: Callable[[str], str], depth: int) -> JSON:
    """Mask what stands right under a secret name: a text, or the texts of a list; a mapping's own names decide about it."""
    if depth > _DEPTH_MAX:
        return MASK
    if isinstance(value, str):
        return MASK if value else value
    if isinstance(value, list):
        return [_masked_leaves(item, clean, depth + 1) for item in value]
    return _rewrite(value, clean, depth)


def _unused(key: str, taken: Mapping[str, JSON]) -> str:
    if key not in taken:
        return key
    number = 2
    while f"{key} ({number})" in taken:
        number += 1
    return f"{key} ({number})"


class LineRedactor:
    """Takes secrets out of one stream's lines; a PEM block or YAML block that began in an earlier line stays masked until it ends."""

    _STRAY_LINES_MAX = 8
    _BLOCK_LINES_MAX = 4_096

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._pem_lines = 0
        self._stray_lines = 0
        self._indent: int | None = None

    def line(self, text: str) -> str:
        """Return the next line of the stream with its secrets masked."""
        if self._pem_lines:
            return self._pem_line(text)
        if self._indent is not None and _in_block(text, self._indent):
            return _mask_block_line(text, None)
        self._indent = _block_indent(text)
        self._watch_pem(text)
        return self._redactor.text(text)

    def _watch_pem(self, text: str) -> None:
        if "PRIVATE KEY" not in text:
            return
        begins = list(_PEM_BEGIN.finditer(text))
        if begins and not _PEM_END.search(text, begins[-1].end()):
            self._pem_lines, self._stray_lines = 1, 0

    def _pem_line(self, text: str) -> str:
        end = _PEM_END.search(text)
        if end:
            self._pem_lines = 0
            return MASK + self.line(text[end.end() :]) if text[end.end() :].strip() else MASK
        self._pem_lines += 1
        # A mention of the BEGIN line in prose must not hide the rest of the stream.
        self._stray_lines = 0 if not text.strip() or _PEM_LONG_CHUNK.search(text) else self._stray_lines + 1
        if self._stray_lines >= self._STRAY_LINES_MAX or self._pem_lines > self._BLOCK_LINES_MAX:
            self._pem_lines = 0
        return MASK if text.strip() else text
