#!/usr/bin/env bash
# Seawall beside the tools that people use instead: full backups and restores of one throwaway cluster, in turns, in one run,
# printed as the tables in docs/performance.md. On any Debian machine with Rust on it; installs what is missing.
#
#   bash benches/peers.sh [--scale N] [--rounds N]
#       N times 15 MB of pgbench's tables (110), so many rounds that count (5) behind one that does not.
#   bash benches/peers.sh --check SEAWALL
#       One round on next to nothing with this program of ours, to see that all of it works. Installs and builds nothing.
#
# What makes it fair:
# * Every repository is a directory on the disk that the data is on, every one is made anew for each backup, and every tool
#   syncs what it stores there. `sync` before each measurement: nobody pays for what somebody else has left in memory.
# * LZ4 at each tool's default level. As many processes as there are processors for pgBackRest (`process-max`), whose small
#   files are bundled, which spares it syncs; wal-rus has its own defaults, and so have we.
# * An immediate checkpoint. Of the data is in the system's cache what the system keeps there, for all alike: `pg_basebackup`
#   reads it first in each round.
# * Page checksums: the server verifies what it sends, pgBackRest and Seawall verify what they read, and Seawall what it is
#   sent as well. wal-rus does not verify what it reads.
# * pgBackRest and wal-rus leave WAL to an `archive_command`; there is none, and they are told not to wait for it. Seawall's
#   time and memory have in them that it stores the WAL of the backup, and at a restore that it plans with it.
# * A restore counts once it is on the disk. wal-rus does not sync what it restores, so its time has a `sync` in it.
# * CPU is that of the tool and its children, not the server's, which a tool that reads the files itself spares. Memory is that
#   of the largest process: pgBackRest has one more of about that size for each of `process-max`.
set -euo pipefail
shopt -s inherit_errexit nullglob
cd "$(dirname "$0")/.."
. docker/packages.sh

scale=110
rounds=5
discarded=1
seawall=
while [ $# -gt 1 ]; do
    case $1 in
        --scale) scale=$2 ;;
        --rounds) rounds=$2 ;;
        --check) seawall=$2 scale=1 rounds=1 discarded=0 ;;
        *) break ;;
    esac
    shift 2
done
[ $# -eq 0 ] || fail "cannot make out $*" "The first lines of benches/peers.sh say what it takes."
[[ $scale =~ ^[1-9][0-9]*$ && $rounds =~ ^[1-9][0-9]*$ ]] || fail "--scale and --rounds want numbers above zero"

if [ -n "$seawall" ]; then
    install() {
        fail "--check installs nothing, and there is no $*" "Run \`bash tests/run.sh\` once: that does."
    }
fi

stage "Programs" >&2
need pgbackrest pgbackrest >&2
# The shell has a `time` of its own, which knows no memory.
[ -x /usr/bin/time ] || install time >&2
servers=(/usr/lib/postgresql/*/bin/pgbench)
[ ${#servers[@]} -gt 0 ] || install_postgresql postgresql >&2
bin=$(dirname "$(printf '%s\n' /usr/lib/postgresql/*/bin/pgbench | sort -V | tail -n 1)")
built=${CARGO_TARGET_DIR:-target}
walrus=$built/peers/bin/walrus
if [ -z "$seawall" ]; then
    need_compiler
    cargo build --release --locked >&2
    seawall=$built/release/seawall
    # From crates.io, where alone it is. Built once.
    [ -x "$walrus" ] ||
        cargo install wal-rus --version 0.4.1 --root "$built/peers" --target-dir "$built/peers/build" >&2 || true
fi
[ -x "$seawall" ] || fail "there is no program $seawall"
if [ ! -x "$walrus" ]; then
    echo "wal-rus is left out: there is no $walrus (\`cargo install wal-rus\` makes it, which --check does not)." >&2
    walrus=
fi

# Everything is below one directory, and as one user, whom PostgreSQL does not refuse; nothing of our environment gets in.
work=$(mktemp -d -t seawall-peers.XXXXXX)
as=(env -i -C / "PATH=$bin:/usr/bin:/bin" LC_ALL=C "PGHOST=$work" PGUSER=postgres PGDATABASE=postgres)
if [ "$(id -u)" -eq 0 ]; then
    chown postgres "$work"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups "${as[@]}")
fi
server=
clean_up() {
    # An immediate shutdown: the data goes away with it.
    if [ -n "$server" ] && kill -QUIT "$server" 2>/dev/null; then wait "$server" || true; fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
cp "$seawall" "$work/seawall"
[ -z "$walrus" ] || cp "$walrus" "$work/walrus"
"${as[@]}" test -x "$work/seawall" ||
    fail "$("${as[@]}" id -un) cannot reach $work" "Set TMPDIR to a directory that this user may enter."

stage "A cluster" >&2
data=$work/data
"${as[@]}" initdb -D "$data" -U postgres -A trust --data-checksums --no-sync >"$work/said"
# One checkpoint, each backup's own; otherwise the server's work falls into one measurement and not into the other.
cat >>"$data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$work'
fsync = off
autovacuum = off
shared_buffers = 256MB
max_wal_size = 16GB
checkpoint_timeout = 1d
max_wal_senders = 20
max_replication_slots = $((2 * (rounds + discarded) + 2))
END
"${as[@]}" postgres -D "$data" >"$work/log" 2>&1 &
server=$!
for _ in {1..600}; do
    "${as[@]}" pg_isready -q && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
"${as[@]}" pg_isready -q || fail "the server has not started: $(tail -n 5 "$work/log")"
"${as[@]}" pgbench --initialize --quiet --scale="$scale" >"$work/said" 2>&1 || fail "pgbench: $(tail -n 5 "$work/said")"
"${as[@]}" psql -qc CHECKPOINT
table=$("${as[@]}" psql -Atc "SELECT pg_relation_filepath('pgbench_accounts')")
bytes=$("${as[@]}" psql -Atc 'SELECT sum(pg_database_size(oid))::bigint FROM pg_database')

cat >"$work/pgbackrest.conf" <<END
[global]
repo1-path=$work/repository
repo1-bundle=y
lock-path=$work/lock
log-level-console=off
log-level-stderr=warn
log-level-file=off
compress-type=lz4
process-max=$(nproc)
start-fast=y
archive-check=n
[peers]
pg1-path=$data
pg1-socket-path=$work
pg1-user=postgres
END
pgbackrest=(pgbackrest "--config=$work/pgbackrest.conf" --stanza=peers)
walrus_here=("WALG_FILE_PREFIX=$work/repository" WALG_COMPRESSION_METHOD=lz4 "$work/walrus")
seawall_here=("$work/seawall" "--repo=file://$work/repository")

# measure NAME COMMAND...: notes round, name, and seconds, CPU seconds (user, system) and the largest process's KiB.
measure() {
    local name=$1
    shift
    sync
    if ! /usr/bin/time -o "$work/cost" -f '%e %U %S %M' "${as[@]}" "$@" >/dev/null 2>"$work/said" </dev/null; then
        tail -n 20 "$work/said" >&2
        fail "$name failed, in round $round"
    fi
    printf '%s\t%s\t%s\n' "$round" "$name" "$(tr ' ' '\t' <"$work/cost")" | tee -a "$work/costs" >&2
}

# An empty repository, and no restored directory.
anew() {
    rm -rf "$work/repository" "$work/restored"
    "${as[@]}" mkdir -m 700 "$work/repository" "$work/restored"
}

# What was measured was the work that was asked for.
check_restored() {
    local file
    for file in "$data/$table"*; do
        cmp "$file" "$work/restored/${file#"$data"/}" >&2 || fail "$1 has restored something else"
    done
}

stage "$((discarded + rounds)) rounds: name, seconds, CPU seconds of user and system, KiB" >&2
for ((round = 1; round <= discarded + rounds; round++)); do
    measure 'pg_basebackup' pg_basebackup -X none -Ft -D - -c fast

    anew
    measure 'seawall, local' "${seawall_here[@]}" backup --fast --slot "local_$round" --data-directory "$data"
    anew
    measure 'seawall' "${seawall_here[@]}" backup --fast --slot "sent_$round"
    measure 'seawall restore' "${seawall_here[@]}" restore --into "$work/restored"
    check_restored seawall
    restored=$(du -sb "$work/restored" | cut -f 1)

    anew
    "${as[@]}" "${pgbackrest[@]}" stanza-create
    measure 'pgbackrest' "${pgbackrest[@]}" --type=full backup
    measure 'pgbackrest restore' "${pgbackrest[@]}" "--pg1-path=$work/restored" restore
    check_restored pgbackrest

    if [ -n "$walrus" ]; then
        anew
        measure 'walrus' "${walrus_here[@]}" backup-push --full
        anew
        measure 'walrus, local' "${walrus_here[@]}" backup-push --full "$data"
        measure 'walrus restore' bash -c 'env "${@:2}" && sync -f "$1"' - "$work/restored" \
            "${walrus_here[@]}" backup-fetch "$work/restored" LATEST
        check_restored walrus
    fi

    anew
    measure 'dd' dd if=/dev/zero "of=$work/restored/zeros" bs=1M "count=$((restored / 1048576 + 1))" conv=fsync
done

# table BYTES NAME=LABEL...: the first is ours; medians, and medians of the rounds' own ratios with the lowest and the highest.
table() {
    echo
    echo '| what | seconds | MB/s | CPU s per GB | peak memory | speed of ours by its | CPU of ours by its |'
    echo '|---|---|---|---|---|---|---|'
    awk -F '\t' -v gb="$(awk "BEGIN { print $1 / 1e9 }")" -v discarded=$discarded -v names="$(printf '%s\t' "${@:2}")" '
        # Sorts values[1..n] in place; what `median` and the lowest and highest are read from.
        function sort(values, n,    i, j, value) {
            for (i = 2; i <= n; i++) {
                value = values[i]
                for (j = i - 1; j >= 1 && values[j] > value; j--) values[j + 1] = values[j]
                values[j + 1] = value
            }
            return values[int(n / 2) + 1]
        }
        function median(figures, name,    values, round) {
            for (round = 1; round <= rounds; round++) values[round] = figures[name, round]
            return sort(values, rounds)
        }
        function ratio(above, one, below, other,    values, round, middle) {
            for (round = 1; round <= rounds; round++) values[round] = above[one, round] / below[other, round]
            middle = sort(values, rounds)
            return sprintf("%.2f (%.2f to %.2f)", middle, values[1], values[rounds])
        }
        # The clock has hundredths, and what took less took one.
        function seconds(figure) { return figure < 0.01 ? 0.01 : figure }
        $1 > discarded {
            round = $1 - discarded
            if (round > rounds) rounds = round
            wall[$2, round] = seconds($3)
            cpu[$2, round] = seconds($4 + $5)
            memory[$2, round] = $6
        }
        END {
            count = split(names, given, "\t") - 1
            for (i = 1; i <= count; i++) {
                at = index(given[i], "=")
                name = substr(given[i], 1, at - 1)
                if (i == 1) ours = name
                if (!((name, 1) in wall)) continue
                took = median(wall, name)
                printf "| %s | %.2f | %.0f | %.2f | %.0f MB | ", substr(given[i], at + 1), took, gb * 1e3 / took, \
                    median(cpu, name) / gb, median(memory, name) * 1024 / 1e6
                if (i == 1) print " |  |"
                else print ratio(wall, name, wall, ours) " | " ratio(cpu, ours, cpu, name) " |"
            }
        }' "$work/costs"
}

megabytes() {
    echo "$(($1 / 1000000)) MB"
}

echo
echo "$("$bin/postgres" --version), $(pgbackrest version), ${walrus:+$("$walrus" --version), }$("$seawall" --version);" \
    "$(nproc) processors, load average $(cut -d ' ' -f 1-3 /proc/loadavg) at the end; rounds: $rounds."
echo
echo "A backup of $(megabytes "$bytes"), sent by the server:"
table "$bytes" 'seawall=`seawall backup`' 'walrus=`walrus backup-push`' \
    'pg_basebackup=`pg_basebackup -X none -Ft -D -` to /dev/null'
echo
echo "The same, the files read by the tool:"
table "$bytes" 'seawall, local=`seawall backup --data-directory`' "pgbackrest=\`pgbackrest backup\`, process-max $(nproc)" \
    'walrus, local=`walrus backup-push PGDATA`' 'pg_basebackup=`pg_basebackup -X none -Ft -D -` to /dev/null'
echo
echo "A restore of $(megabytes "$restored"):"
table "$restored" 'seawall restore=`seawall restore`' "pgbackrest restore=\`pgbackrest restore\`, process-max $(nproc)" \
    'walrus restore=`walrus backup-fetch`, then `sync`' 'dd=`dd conv=fsync` of as many zeros'
