# Runs a server as a child that never outlives its owner, however the owner ends (kill -9 too).
#
# $1            file for the server's process id
# $2            signal that stops the server when the owner is gone
# $3            directory to remove afterwards, with its parent when that is empty then, or nothing
# $4...         the server and its arguments
#
# Standard input is a pipe that only the owner writes to. A line on it is a signal's name for the server; its end
# means that the owner is gone (or has asked for an orderly stop by closing it).
pidfile=$1 last=$2 remove=$3
shift 3
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
echo "$server" >"$pidfile"
{
    while read -r signal <&3; do kill -"$signal" "$server" 2>/dev/null; done
    kill -"$last" "$server" 2>/dev/null
    # A server that does not stop in half a minute is stopped for good.
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do sleep 1; done
    kill -KILL "$server" 2>/dev/null
} &
watcher=$!
wait "$server"
code=$?
kill -KILL "$watcher" 2>/dev/null
rm -f "$pidfile"
[ -z "$remove" ] || { rm -rf -- "$remove"; rmdir -- "${remove%/*}" 2>/dev/null; }
exit "$code"
