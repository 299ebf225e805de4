#!/usr/bin/env bash
# Makes a fresh machine a node: the pinned packages in ~/venv, and shells that use them.
# Run again, it changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$HOME/venv

if [ ! -x "$venv/bin/python" ]; then
    if ! command -v python3.11 >/dev/null; then
        # Ubuntu 22.04 has 3.10; this archive has 3.11 for it.
        sudo add-apt-repository -y ppa:deadsnakes/ppa
        # A machine that has just booted may still be installing its own updates.
        sudo apt-get -o DPkg::Lock::Timeout=300 install -qq -y python3.11-venv
    fi
    python3.11 -m venv "$venv"
fi
# Where all pins are met, as in an image made beforehand, this needs no network.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r requirements.txt -r cloud/requirements.txt

# The commands that start Ray are run by login shells.
if ! grep -q taehv-node "$HOME/.bashrc"; then
    # Buckets of another region than the default one are refused; the machine knows where it is.
    region=$("$venv/bin/python" cloud/metadata.py region)
    cat >>"$HOME/.bashrc" <<SHELL
# taehv-node
export PATH=$venv/bin:\$PATH RAY_AUTH_MODE=token
${region:+export AWS_REGION=$region AWS_DEFAULT_REGION=$region}
SHELL
fi
