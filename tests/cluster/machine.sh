#!/usr/bin/env bash
# machine.sh NAME PRIVATE_IP PUBLIC_IP PUBLIC_KEY: (in the lab) boots a machine with sshd, and
# prints the process id that ends it.
#
# Its image is this repository's virtual environment as ~/venv, and $LAB/image.env, which every
# shell there reads first.
set -euo pipefail
name=$1 ip=$2 public=$3 key=$4
folder=$LAB/machines/$name
mkdir -p "$folder/root/.ssh" "$folder/tmp"
chmod 700 "$folder/root" "$folder/root/.ssh"
# The names of the data centre; there is nobody to ask for others.
echo "$ip $name" >>"$LAB/hosts"
echo "$key" >"$folder/root/.ssh/authorized_keys"
chmod 600 "$folder/root/.ssh/authorized_keys"
cp "$LAB/image.env" "$folder/root/.bashrc"
echo '. ~/.bashrc' >"$folder/root/.bash_profile"
ln -s "$REPOSITORY/.venv" "$folder/root/venv"
mkdir "$folder/root/bin"
# Its user is root already.
printf '#!/bin/sh\nexec "$@"\n' >"$folder/root/bin/sudo"
chmod +x "$folder/root/bin/sudo"
cp "$LAB/host_key" "$folder/host_key"
chmod 600 "$folder/host_key"

export folder name
export -n LAB_KEEP
setsid unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc bash -c '
    set -e
    . "$HERE/private_folders.sh"
    private_folders "$folder"
    hostname "$name"
    ip link set lo up
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
    until ip route show default | grep -q default; do sleep 0.02; done
    # The user of the image, who may do what root may: namespaces of users would be one more layer.
    { cat /etc/passwd; echo ubuntu:x:0:0::/root:/bin/bash; } >/run/passwd
    { cat /etc/shadow; echo "ubuntu:*:19000:0:99999:7:::"; } >/run/shadow
    mount --bind /run/passwd /etc/passwd
    mount --bind /run/shadow /etc/shadow
    exec /usr/sbin/sshd -D -e -f /dev/null -h "$folder/host_key" -o PidFile=none -o UsePAM=no \
        -o StrictModes=no -o PermitRootLogin=prohibit-password -o MaxStartups=100
' >"$folder/boot.log" 2>&1 </dev/null &
outer=$!
inner=
for _ in $(seq 500); do
    inner=$(tr -d ' ' <"/proc/$outer/task/$outer/children" 2>/dev/null || true)
    [ -n "$inner" ] && [ "$(readlink "/proc/$inner/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break
    sleep 0.02
done
cable=m$(echo -n "$name" | md5sum | cut -c1-10)
ip link add "$cable" type veth peer name eth0 netns "$inner"
ip link set "$cable" master centre up
inside() { nsenter --net="/proc/$inner/ns/net" "$@"; }
inside ip addr add "$ip/16" dev eth0
inside ip addr add "$public/32" dev eth0
inside ip link set eth0 up
inside ip route add default via 172.31.255.254
for _ in $(seq 200); do
    if (exec 3<>"/dev/tcp/$ip/22") 2>/dev/null; then
        echo "$outer"
        exit 0
    fi
    sleep 0.05
done
echo "no sshd on $ip: $(cat "$folder/boot.log")" >&2
exit 1
