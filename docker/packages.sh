# Sourced by docker/quickstart.sh and tests/run.sh: stage lines, and Debian packages for programs that are missing.

stage() {
    printf '\n==> %s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$1" >&2
    if [ $# -gt 1 ]; then printf 'hint: %s\n' "$2" >&2; fi
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root: $*" "Run it as root once, or install sudo."
    fi
}

apt_lists_are_fresh=no

refresh_apt_lists() {
    if [ "$apt_lists_are_fresh" = no ]; then
        as_root apt-get update -qq
        apt_lists_are_fresh=yes
    fi
}

# install PACKAGE...: from Debian's archive, without questions.
install() {
    command -v apt-get >/dev/null || fail "no apt-get here to install: $*" "Install these by hand, then run this again."
    refresh_apt_lists
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# unpack_package PACKAGE DIRECTORY: what is in a package of Debian's archive, without installing it; by a new name first, so
# that a run that was cut leaves nothing half done.
unpack_package() {
    command -v apt-get >/dev/null || fail "no apt-get here to fetch: $1" "Put what the package has into $2, then run this again."
    refresh_apt_lists
    rm -rf "$2" "$2.new"
    mkdir -p "$2.new/download"
    (cd "$2.new/download" && apt-get download -qq "$1")
    dpkg -x "$2.new/download/$1"_*.deb "$2.new"
    rm -rf "$2.new/download"
    mv "$2.new" "$2"
}

# need PROGRAM PACKAGE...: installs the packages if the program is not in PATH.
need() {
    local program=$1
    shift
    command -v "$program" >/dev/null || install "$@"
}

# Installs a PostgreSQL server package. Debian's would also make a cluster and start it on port 5432: nobody asked for that.
install_postgresql() {
    local conf=/etc/postgresql-common/createcluster.conf
    install postgresql-common
    if ! grep -q '^create_main_cluster' "$conf"; then
        echo 'create_main_cluster = false' | as_root tee -a "$conf" >/dev/null
    fi
    install "$@"
}

# Installs packages with services that nobody asked for here: they are neither started now nor with the machine.
install_without_services() {
    local policy=/usr/sbin/policy-rc.d services=$1
    shift
    if [ -e "$policy" ]; then
        install "$@"
    else
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
        install "$@" || { as_root rm "$policy"; fail "cannot install: $*"; }
        as_root rm "$policy"
    fi
    if command -v systemctl >/dev/null; then as_root systemctl --quiet disable "$services" || true; fi
}

# What building takes beside Rust itself.
need_compiler() {
    command -v cargo >/dev/null || fail "no cargo in PATH" "Install Rust (https://rustup.rs), then run this again."
    need cc gcc libc6-dev
}
