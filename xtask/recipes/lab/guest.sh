# Functions to run one guest with `bulkhead run` and look after it; sourced by the lab's scripts (bash).
# Console: out/console (and standard output). The supervisor's log: out/log. Exit status: out/status.
mkdir -p out

# A guest that hangs leaves nothing to read, so what its processors do is shown a little before the scenario's time is up.
autopsy() {
    local task
    echo '--- the time is nearly up ---'
    for task in /proc/"$(pidof -s core-vmm)"/task/*; do
        echo "$(cat "$task/comm") $(awk '{ print $3, $14, $15 }' "$task/stat"): $(tr '\n' ' ' < "$task/stack")"
    done
    for _ in 1 2; do
        (cd /sys/kernel/debug/kvm && grep -s . */vcpu*/{exits,halt_exits,irq_exits,irq_window_exits,io_exits,mmio_exits,request_irq_exits,nmi_injections,pid} exits irq_injections)
        sleep 1
        echo
    done
    [ ! -e out/log ] || tail -n 5 out/log
    # Why its processors leave the guest, where they are then, and what is injected when they enter it. A buffer that is small is read at once.
    (
        mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
        cd /sys/kernel/tracing && echo 128 > buffer_size_kb
        for event in exit inj_virq eoi apic_accept_irq hv_stimer_callback nested_vmexit; do echo kvm:kvm_$event >> set_event; done
        sleep 1
        echo > set_event
        timeout 8 cat trace > /run/trace
        grep -oE ' kvm_(exit: .*reason [A-Za-z_0-9]+|[a-z_]+)' /run/trace | sed -E 's/vcpu [0-9]+//' | sort | uniq -c | sort -rn | head -n 20
        tail -n 40 /run/trace
    ) 2>&1
}
if [ -n "${LIMIT-}" ]; then
    { sleep $(( LIMIT - 30 )) &> /dev/null && autopsy; } &
    trap "kill $! 2> /dev/null" EXIT
fi

guest_start() { # [SPEC]
    rm -f out/status input
    : > out/console
    mkfifo input
    exec 9<> input
    started=$EPOCHREALTIME
    {
        bulkhead run "${1:-vm.toml}" <&9 2> out/log
        echo $? > out/status
    } | tee out/console &
    guest_tee=$!
}

guest_wait_for() { # PATTERN SECONDS
    local tries=$(( $2 * 5 ))
    while ! grep -aqE -e "$1" out/console; do
        if [ -e out/status ] || [ $(( tries -= 1 )) -lt 0 ]; then
            echo "scenario: no '$1' on the console"
            return 1
        fi
        sleep 0.2
    done
}

guest_type() { printf '%s\r' "$1" >&9; }

ours() { # prints the processes of the product
    ps -e -o pid=,comm= | awk '$2 ~ /^(bulkhead|bulkhead-consol|core-vmm|vsp-[a-z]+)$/ { print $1; found = 1 } END { exit !found }'
}

our_programs() { # how many different programs of the product run
    for pid in $(ours); do cat "/proc/$pid/comm"; done | sort -u | wc -l
}

guest_end() { # waits for the guest's own end; returns what bulkhead returned
    wait $guest_tee
    echo
    local status
    status=$(cat out/status)
    if [ "$status" != 0 ]; then
        echo "--- bulkhead's log (status $status) ---"
        tail -n 40 out/log
    fi
    exec 9>&-
    nothing_left || return 99
    return "$status"
}

nothing_left() {
    local tries=20
    while ours > /dev/null; do
        if [ $(( tries -= 1 )) -lt 0 ]; then
            echo 'scenario: processes were left behind:'
            ps -o pid,ppid,uid,stat,args -p "$(ours | tr '\n' ' ')"
            return 1
        fi
        sleep 0.1
    done
}

# Memory of a process that is its own and nobody else's, in KiB; the guest's RAM does not count.
private_dirty() { # PID
    awk '
        /^[0-9a-f]+-[0-9a-f]+ / { ram = ($6 ~ /^\/memfd:.*ram/) }
        /^Private_Dirty:/ && !ram { sum += $2 }
        END { print sum + 0 }' "/proc/$1/smaps"
}

# One line a process: who it is, and what it can still do.
show_processes() {
    printf '%-12s %7s %10s %-32s %-8s %-9s %-7s %s\n' process pid uid 'own namespaces' caps seccomp no_new 'private dirty'
    local pid name uid spaces caps seccomp no_new space
    for pid in $(ours); do
        name=$(cat "/proc/$pid/comm")
        uid=$(awk '/^Uid:/ { print $2 }' "/proc/$pid/status")
        caps=$(awk '/^CapEff:/ { print ($2 ~ /^0+$/) ? "none" : $2 }' "/proc/$pid/status")
        seccomp=$(awk '/^Seccomp:/ { print ($2 == 2) ? "filter" : "none" }' "/proc/$pid/status")
        no_new=$(awk '/^NoNewPrivs:/ { print ($2 == 1) ? "yes" : "no" }' "/proc/$pid/status")
        spaces=
        for space in cgroup ipc mnt net pid user uts; do
            if [ "$(readlink "/proc/$pid/ns/$space")" != "$(readlink "/proc/self/ns/$space")" ]; then
                spaces="$spaces${spaces:+,}$space"
            fi
        done
        printf '%-12s %7s %10s %-32s %-8s %-9s %-7s %s KiB\n' \
            "$name" "$pid" "$uid" "${spaces:-none}" "$caps" "$seccomp" "$no_new" "$(private_dirty "$pid")"
    done
}
