# private_folders FOLDER: (in a new mount namespace) /root and /tmp are those in FOLDER, /run and
# /dev/shm are empty, and what was hidden but is needed is there all the same: the code, its
# virtual environment, the interpreter, the lab.
private_folders() {
    mount --make-rprivate /
    for needed in "$PYTHON_HOME" "$REPOSITORY" "$LAB"; do
        case $needed in /root/* | /tmp/*)
            mkdir -p "$1$needed"
            mount --bind "$needed" "$1$needed"
            ;;
        esac
    done
    mount --rbind "$1/root" /root
    mount --rbind "$1/tmp" /tmp
    mount -t tmpfs tmpfs /run
    mkdir -p /run/sshd
    mount -t tmpfs -o size=3g tmpfs /dev/shm
    mount --bind "$LAB/hosts" /etc/hosts
    if [ -e /etc/resolv.conf ]; then mount --bind "$LAB/resolv.conf" /etc/resolv.conf; fi
}
