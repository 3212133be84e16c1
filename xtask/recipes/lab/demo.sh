# The demonstration, wherever it runs: in a directory with vm.toml; sourced after guest.sh.
# The order of things: boot; when the guest's script starts, show the host's side; wait for the power-off; sum up.
say() { printf '\n\033[1m-- %s\033[0m\n' "$*"; }

say "bulkhead run vm.toml"
cat vm.toml
say "the guest's console"
guest_start
if guest_wait_for 'bulkhead-job: demo begin' "${DEMO_LIMIT:-400}"; then
    arrived=$EPOCHREALTIME
    guest_wait_for 'fio: random' 120
    sleep 1
    show_processes > out/processes
    guest_wait_for 'bulkhead-job: demo exit' 300
fi
guest_end
status=$?

say "the host's side, while the guest's fio ran"
cat out/processes 2> /dev/null

say "summary"
boot=$(awk "BEGIN { printf \"%.1f\", ${arrived:-0} - $started }")
ok=yes
check() { # TEXT CONDITION...
    local text=$1
    shift
    if "$@"; then echo "  yes  $text"; else echo "  NO   $text"; ok=no; fi
}
check "the guest was up $boot s after bulkhead's start" test -n "${arrived:-}"
check "its root is on a disk that hv_storvsc drives" grep -aqE 'driver hv_storvsc' out/console
check "fio wrote and verified every block" grep -aq 'fio: verified' out/console
check "its script ended well" grep -aq 'bulkhead-job: demo exit 0' out/console
check "vsp-storage ran behind a system-call filter, without capabilities" \
    grep -qE '^vsp-storage .* none +filter +yes' out/processes
check "so did core-vmm" grep -qE '^core-vmm .* none +filter +yes' out/processes
check "the guest powered off, and bulkhead returned 0 (it returned $status)" test "$status" = 0
check "no process was left behind" nothing_left
if [ $ok = yes ]; then
    echo 'demo: ok'
else
    echo 'demo: failed'
    exit 1
fi
