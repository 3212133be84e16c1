# Both guests have a NIC of the same make, each on a wire of its own, ours by vsp-pci, QEMU's by its own vfio-pci, and send and receive in turns; sourced after
# pci.sh and bench.sh.
cable && cable 52:54:00:00:01:04 other-neighbour || exit 1
nics=($(cards 0x8086 0x10d3 2)) && for at in "${nics[@]}"; do bulkhead pci bind "$at" || exit 1; done
# Each guest has each of the cards in one of two runs, which are lives of their own besides: between those there is more than between rounds.
if (( TURNED )); then nics=("${nics[1]}" "${nics[0]}"); fi
sed -i "s/@nic@/${nics[0]}/" bench.toml
udevadm settle
guest_start bench.toml > /dev/null
peer_start -device vfio-pci,host="${nics[1]}"
both_ready || exit 1

user_exits() { # exits of our guest to the core's program so far
    cat /sys/kernel/debug/kvm/"$(pidof -s core-vmm)"-*/{io_exits,mmio_exits} | awk '{ sum += $1 } END { print sum }'
}
switches() { awk '/^voluntary_ctxt_switches/ { print $2 }' /proc/"$(pidof vsp-pci | tr ' ' '\n' | sort -n | head -n 1)"/status; }

for (( round = 0; round <= ${ROUNDS:-7}; round++ )); do
    for way in send receive; do
        # Who goes first changes, so that a drift of the machine's speed favours nobody.
        if (( round % 2 )); then order='peer ours'; else order='ours peer'; fi
        for who in $order; do
            exits=$(user_exits) turns=$(switches)
            ask $who $round $way ${who}_$way || exit 1
            # What is said on the serial port exits, too: some 60 characters both ways.
            [ $who = ours ] && [ $round != 0 ] && echo "figure exits $(( $(user_exits) - exits ))" && echo "figure turns $(( $(switches) - turns ))"
        done
    done
done
for pid in $(pidof vsp-pci); do echo "figure memory $(private_dirty "$pid")"; done
both_end
