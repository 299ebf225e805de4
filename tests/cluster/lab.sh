#!/usr/bin/env bash
# lab.sh COMMAND...: runs COMMAND as the user's laptop in a pretended data centre, and ends with it
# all that was started there.
#
# The laptop gets namespaces of its own for network, processes, mounts, host name and IPC, and empty
# /root, /tmp, /run and /dev/shm. A bridge is the network of the data centre; machine.sh puts
# machines on it. Nothing leaves this machine, nothing outside is changed but the folder of the lab,
# which is removed at the end (kept where LAB_KEEP is set).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)

lacking=()
[ "$(uname -s)" = Linux ] || lacking+=("Linux")
[ "$(id -u)" = 0 ] || lacking+=("root, for namespaces")
for tool in unshare:util-linux ip:iproute2 /usr/sbin/sshd:openssh-server ssh:openssh-client \
    ssh-keygen:openssh-client rsync:rsync losetup:util-linux mkfs.ext4:e2fsprogs; do
    command -v "${tool%%:*}" >/dev/null || lacking+=("${tool%%:*} (apt-get install ${tool##*:})")
done
[ -x "$repository/.venv/bin/ray" ] || lacking+=(".venv (make test)")
if [ ${#lacking[@]} -gt 0 ]; then
    printf 'the cluster tests need: %s\n' "${lacking[@]}" >&2
    exit 1
fi

# Sockets below it must have short paths.
export LAB=${LAB_FOLDER:-$(mktemp -d /var/tmp/lab.XXXX)}
export REPOSITORY=$repository HERE=$here
# The virtual environment's interpreter may lie in a folder that is hidden below.
PYTHON_HOME=$(dirname "$(dirname "$(readlink -f "$repository/.venv/bin/python")")")
export PYTHON_HOME
ssh-keygen -q -t ed25519 -N '' -f "$LAB/host_key"
mkdir -p "$LAB/machines" "$LAB/laptop/root" "$LAB/laptop/tmp"
chmod 700 "$LAB/laptop/root"
echo "127.0.0.1 localhost laptop" >"$LAB/hosts"
: >"$LAB/resolv.conf"

# Killed, it takes all that it started with it; to be asked nicely it does not listen.
trap 'kill -KILL "$lab" 2>/dev/null' INT TERM
unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc bash -c '
    set -e
    . "$HERE/private_folders.sh"
    private_folders "$LAB/laptop"
    hostname laptop
    ip link set lo up
    ip link add centre type bridge
    # The gateway of the machines network, and the services that every machine of a cloud reaches.
    ip addr add 172.31.255.254/16 dev centre
    ip addr add 169.254.169.254/32 dev centre
    ip link set centre up
    ip route add default dev centre
    export HOME=/root TMPDIR=/tmp PATH="$REPOSITORY/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
    cd "$REPOSITORY"
    exec "$@"' lab "$@" &
lab=$!
status=0
wait "$lab" || status=$?
# What stood for volumes.
losetup --list --noheadings --output NAME,BACK-FILE | awk -v lab="$LAB/" 'index($2, lab) == 1 {print $1}' |
    xargs --no-run-if-empty --max-args=1 losetup --detach
[ -n "${LAB_KEEP:-}" ] || rm -rf "$LAB"
exit $status
