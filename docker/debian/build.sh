#!/usr/bin/env bash
# Makes seawall_VERSION_ARCH.deb: build.sh [PROGRAM [DIRECTORY]]. Without a program it builds one. The manual pages and
# completions come from the program itself, so it must run on this machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

program=${1:-}
directory=${2:-target/debian}
if [ -z "$program" ]; then
    cargo build --release --locked
    program=${CARGO_TARGET_DIR:-target}/release/seawall
fi

version=$("$program" --version)
version=${version#seawall }
architecture=$(dpkg --print-architecture)
# The newest symbol that it wants of the C library is the oldest library that it runs with.
glibc=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)

mkdir -p "$directory"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
share=$tree/usr/share

install -D -m 0755 --strip "$program" "$tree/usr/bin/seawall"
install -D -m 0644 docker/systemd/seawall.service "$tree/lib/systemd/system/seawall.service"
mkdir -p "$tree/etc/seawall" "$share/doc/seawall/examples"
"$program" config example | tee "$share/doc/seawall/examples/seawall.toml" >"$tree/etc/seawall/seawall.toml"
chmod 0640 "$tree/etc/seawall/seawall.toml"
install -D -m 0644 LICENSE "$share/doc/seawall/copyright"
install -D -m 0644 README.md "$share/doc/seawall/README.md"
gzip -9n <CHANGELOG.md >"$share/doc/seawall/changelog.gz"
"$program" manpages "$share/man/man1"
gzip -9n "$share"/man/man1/*.1
completion() {
    mkdir -p "${2%/*}"
    "$program" completions "$1" >"$2"
}
completion bash "$share/bash-completion/completions/seawall"
completion zsh "$share/zsh/vendor-completions/_seawall"
completion fish "$share/fish/vendor_completions.d/seawall.fish"
chmod -R u=rwX,go=rX "$share"

mkdir -p "$tree/DEBIAN"
install -m 0755 docker/debian/postinst docker/debian/prerm docker/debian/postrm "$tree/DEBIAN/"
echo /etc/seawall/seawall.toml >"$tree/DEBIAN/conffiles"
cat >"$tree/DEBIAN/control" <<END
Package: seawall
Version: $version
Architecture: $architecture
Maintainer: Seawall <seawall@localhost>
Section: database
Priority: optional
Depends: adduser, ca-certificates, libc6 (>= ${glibc#GLIBC_}), libgcc-s1
Suggests: postgresql
Installed-Size: $(du -sk "$tree" | cut -f 1)
Description: continuous archiver for PostgreSQL
 Streams WAL into object storage in near real time, takes base backups over the
 same connection, and restores a cluster to any moment.
END
dpkg-deb --root-owner-group -Zgzip --build "$tree" "$directory/seawall_${version}_$architecture.deb"
