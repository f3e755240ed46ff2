#!/usr/bin/env bash
# From a fresh Debian machine with Rust on it to a restored database: installs PostgreSQL where it is missing, builds
# Seawall, runs its demonstration. Arguments go to `seawall demo`, such as --keep.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/packages.sh

stage "PostgreSQL's server programs"
shopt -s nullglob
servers=("${SEAWALL_PG_BIN:-/nowhere}"/initdb /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb)
found=$(command -v initdb || true)
for server in "${servers[@]}"; do
    if [ -x "$server" ]; then found=$server; fi
done
if [ -n "$found" ]; then
    echo "found $found"
else
    install_postgresql postgresql
fi

stage "Building Seawall"
need_compiler
cargo build --release --locked

stage "seawall demo"
exec "${CARGO_TARGET_DIR:-target}/release/seawall" demo "$@"
