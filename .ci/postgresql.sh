#!/usr/bin/env bash
# Start a throw-away PostgreSQL server on a free loopback port and print its URL, and nothing else.
# Debian's packages are installed if there are none. The server runs until the machine is gone, or:
#     pg_ctl -D <the folder named on stderr> -m immediate stop
set -euo pipefail

find_bin() { find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1; }

bin="$(find_bin)"
if [ ! -x "$bin/initdb" ]; then
    {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql
    } >&2
    bin="$(find_bin)"
fi

# The server refuses to run as root.
as_server() { "$@"; }
folder="$(mktemp -d /tmp/nas-postgresql.XXXXXX)"
if [ "$(id -u)" -eq 0 ]; then
    as_server() { runuser -u postgres -- "$@"; }
    chown postgres "$folder"
fi
cd "$folder"

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
# Without fsync a crash loses the data, which nobody will miss.
options="-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder -c fsync=off"
{
    as_server "$bin/initdb" -D "$folder/data" -U nas -A trust --no-sync -E UTF8
    as_server "$bin/pg_ctl" -D "$folder/data" -l "$folder/log" -o "$options" -w -t 60 start
    as_server "$bin/createdb" -h 127.0.0.1 -p "$port" -U nas nas
    echo "PostgreSQL runs in $folder/data"
} >&2
echo "postgresql://nas@127.0.0.1:$port/nas"
