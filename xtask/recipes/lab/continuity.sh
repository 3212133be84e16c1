# Functions for scenarios in which device processes die or are replaced while the guest works; sourced after guest.sh.
# The VM is called lab, its device disk0; what they print is what a scenario expects.

row() { # FIELD: of the device's row
    bulkhead device ls lab --json 2> /dev/null | jq -r ".[0].$1 // empty"
}

never_reset() { # a guest that starts again has noticed something
    local times
    times=$(grep -ac 'load: begin' out/console)
    [ "$times" -le 1 ] || { echo "scenario: the guest's load began $times times"; return 1; }
}

loaded() { # while the guest's load runs
    ! grep -aq 'load: end' out/console && [ ! -e out/status ]
}

kill_by_pid() { # one program less to start than with jq: it is called often
    local row
    row=$(bulkhead device ls lab --json)
    [[ $row == *'"state":"serving"'* && $row =~ \"pid\":([0-9]+) ]] && kill -KILL "${BASH_REMATCH[1]}"
}

kill_by_systemd() {
    local unit=vsp-storage@lab:disk0.service
    case $(systemctl show --property=StatusText --value "$unit") in
        serving*) systemctl kill --signal=KILL "$unit" ;;
        *) return 1 ;;
    esac
}

# Kills the process that serves, half a second after the last look, until the load ends. One that is not there yet is left to
# come: killing faster than an emulated host can start programs would only show that nothing gets done.
kill_while_loaded() { # HOW LEAST
    local kills=0
    guest_wait_for 'load: begin' 300 || return
    while loaded; do
        sleep 0.5
        "$1" && kills=$(( kills + 1 ))
    done
    echo "kills: $kills, process restarts: $(row restarts), last death: $(row last_death)"
    [ $kills -ge "$2" ] || { echo "scenario: less than $2 kills"; return 1; }
}

# Hands over to a copy of the program and back to the program, again and again, until the load ends.
swap_while_loaded() { # LEAST
    local swaps=0 failures=0
    cp bin/vsp-storage bin/vsp-storage-other
    guest_wait_for 'load: begin' 300 || return
    while loaded; do
        sleep 2
        loaded || break
        local options=()
        case $(( swaps % 3 )) in
            1) options=(--binary "$PWD/bin/vsp-storage-other") ;;
            2) options=(--binary "$PWD/bin/vsp-storage") ;;
        esac
        if bulkhead device swap lab disk0 "${options[@]}"; then
            swaps=$(( swaps + 1 ))
        else
            failures=$(( failures + 1 ))
            [ $failures -lt 5 ] || break
        fi
    done
    echo "swaps: $swaps, failures: $failures, takeovers: $(row takeovers)"
    [ $swaps -ge "$1" ] && [ $failures = 0 ]
}

units_start() {
    rm -f out/status input
    : > out/console
    mkfifo input
    exec 9<> input
    bulkhead units vm.toml && systemctl daemon-reload && systemctl start bulkhead-vm@lab.target || return
    {
        socat - UNIX-CONNECT:/run/bulkhead@lab/console.sock <&9
        systemctl show --property=ExecMainStatus --value bulkhead-core@lab.service > out/status
    } | tee out/console &
    guest_tee=$!
}

units_end() { # waits for the guest's own end; returns what the core returned
    wait $guest_tee
    echo
    if [ "$(cat out/status)" != 0 ] || ! never_reset; then
        journalctl --boot --no-pager --lines=60 --unit='bulkhead-*@lab*' --unit='vsp-*@lab*'
    fi
    units_gone && return "$(cat out/status)"
}

units_gone() { # every process and unit of the VM has ended, and left nothing
    local tries=50
    while ours > /dev/null || [ -e /run/bulkhead@lab ] || ! flock --nonblock /dev/vdc true \
        || systemctl --quiet is-active bulkhead-vm@lab.target bulkhead-core@lab.service bulkhead-core@lab.socket \
            vsp-storage@lab:disk0.service vsp-storage@lab:disk0:b.service; do
        if [ $(( tries -= 1 )) -lt 0 ]; then
            echo 'scenario: something was left behind:'
            ps -o pid,ppid,uid,stat,args -p "$(ours | tr '\n' ' ')"
            systemctl list-units --all --no-pager 'bulkhead-*' 'vsp-*'
            ls -la /run/bulkhead@lab
            return 1
        fi
        sleep 0.1
    done
}

units_secure() { # UNIT=LIMIT...: what systemd thinks of the hardening, in tenths: 0 is best, 100 worst
    local unit limit
    for unit; do
        limit=${unit#*=}
        systemd-analyze security --no-pager "--threshold=$limit" "${unit%=*}" > out/security || limit=over
        tail -n 1 out/security
        [ $limit != over ] || return 1
    done
}

units_orphans() { # the core dies: nothing is left, and nothing comes back
    systemctl start bulkhead-vm@lab.target && sleep 3 || return
    echo "before the core's death: $(ours | wc -l) processes"
    systemctl kill --signal=KILL bulkhead-core@lab.service
    sleep 1
    units_gone && sleep 3 && units_gone && echo 'orphans: none' || return
    bulkhead units --remove lab > /dev/null && systemctl daemon-reload
    [ -z "$(ls -d /etc/bulkhead /etc/systemd/system/*bulkhead-core* 2> /dev/null)" ] && echo 'units: removed'
}
