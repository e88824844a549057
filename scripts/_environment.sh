# Sourced by the other scripts: goes to the top of the checkout and sees to it that .venv there matches requirements-dev.lock.
# Says nothing when there is nothing to do. Pip's own settings (index, proxy, certificates) are the user's and stay in force.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
unset PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH # the time a start takes is measured with compiled modules, as users have them

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The newest Python that really runs: a name on the PATH may be a version switcher's, with nothing behind it.
_find_python() {
    local name
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null && _is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

_can_make_environments() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

_apt_install() {
    local log
    log=$(mktemp)
    say "installing $* (apt-get)"
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install $*; its last lines are above"
    fi
    rm -f "$log"
}

# Debian and Ubuntu ship Python without the part that makes virtual environments.
_python_that_makes_environments() {
    local python missing
    python=$(_find_python) || python=""
    if [ -n "$python" ] && _can_make_environments "$python"; then
        printf '%s\n' "$python"
        return
    fi
    missing=python3-venv
    [ -z "$python" ] || missing=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if ! command -v apt-get >/dev/null; then
        die "Python 3.11 or newer with its venv module is needed and was not found; install it, then run this again"
    fi
    if [ "$(id -u)" != 0 ]; then
        die "Python 3.11 or newer with its venv module is needed. Run: sudo apt-get install $missing"
    fi
    _apt_install "$missing"
    hash -r
    python=$(_find_python) || die "the newest Python here is older than 3.11; install a newer one, then run this again"
    _can_make_environments "$python" || die "$python cannot make virtual environments; install its venv module"
    printf '%s\n' "$python"
}

_install() {
    local log
    log=$(mktemp)
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "$@" >"$log" 2>&1 </dev/null; then
        tail -n 25 "$log" >&2
        rm -f "$log"
        die "pip could not install into .venv; its last lines are above. With a proxy or an index of your own, set them up in pip's settings"
    fi
    rm -f "$log"
}

_digest() { cat "$@" | { sha256sum 2>/dev/null || shasum -a 256; }; }

# Two stamps: another lock makes the whole environment again, another pyproject.toml only installs the project again.
# The folder is in both, since a virtual environment does not survive a move.
_ensure_environment() {
    local wanted own python
    wanted="$PWD $(_digest requirements-dev.lock)"
    own="$PWD $(_digest pyproject.toml)"
    if [ "$(cat .venv/.lock-stamp 2>/dev/null)" != "$wanted" ] || ! _is_new_enough .venv/bin/python; then
        python=$(_python_that_makes_environments)
        say "making .venv with $("$python" --version) from requirements-dev.lock (about half a minute)"
        rm -rf .venv
        "$python" -m venv .venv
        _install --require-hashes -r requirements-dev.lock
        printf '%s\n' "$wanted" >.venv/.lock-stamp
    fi
    if [ "$(cat .venv/.own-stamp 2>/dev/null)" != "$own" ]; then
        _install --no-deps --no-build-isolation --editable .
        printf '%s\n' "$own" >.venv/.own-stamp
    fi
}

# Scripts that run side by side make it once.
exec 9<pyproject.toml
if command -v flock >/dev/null; then flock 9; fi
_ensure_environment
exec 9<&-
