# Functions for scenarios with cards in the lab host's slots; sourced after guest.sh. The VM is called lab.

cards() { # VENDOR DEVICE COUNT: waits for as many; prints their addresses
    local tries=100 at found
    while true; do
        found=()
        for at in /sys/bus/pci/devices/*; do
            [ "$(cat "$at/vendor" "$at/device" 2> /dev/null | tr '\n' ' ')" = "$1 $2 " ] && found+=("$(basename "$at")")
        done
        [ ${#found[@]} -ge "$3" ] && echo "${found[@]}" && return
        sleep 0.1
        [ $(( tries -= 1 )) -gt 0 ] || { echo "scenario: no card $1 $2" >&2; return 1; }
    done
}

card() { cards "$1" "$2" 1; } # VENDOR DEVICE: waits for it; prints its address

# Gives VFIO a card, and the specification its address.
take_card() { # NAME VENDOR DEVICE
    local at
    at=$(card "$2" "$3") && bulkhead pci bind "$at" && sed -i "s/@$1@/$at/" vm.toml
}

# The lab host's own NIC at the other end of a card's cable, 10.0.0.1: gives addresses, and is there for iperf3. There may be a second one.
cable() { # [MAC NAMESPACE]
    local tries=100 mac=${1:-52:54:00:00:01:02} at=${2:-neighbour} nic
    until nic=$(grep -lx "$mac" /sys/class/net/*/address 2> /dev/null); do sleep 0.1; [ $(( tries -= 1 )) -gt 0 ] || return 1; done
    nic=$(basename "$(dirname "$nic")")
    ip netns add "$at" && ip link set "$nic" netns "$at" name cable || return
    ip -n "$at" link set lo up && ip -n "$at" link set cable up && ip -n "$at" address add 10.0.0.1/24 dev cable || return
    ip netns exec "$at" dnsmasq --conf-file=/dev/null --port=0 --dhcp-range=10.0.0.50,10.0.0.90,1h --interface=cable --bind-interfaces \
        --user=root --pid-file="/run/cable-$at.pid" --dhcp-leasefile="/run/cable-$at.leases" || return
    ip netns exec "$at" iperf3 --server --daemon
}

# Where the kernel has iommufd, devices are had by it; says so once the first one is.
had_rightly() {
    ! modinfo iommufd > /dev/null 2>&1 || {
        local fds
        fds=$(ls -l /proc/"$(pidof -s core-vmm)"/fd 2> /dev/null)
        [[ $fds == */dev/iommu* && $fds == */dev/vfio/devices/* && $fds != */dev/vfio/vfio* ]]
    }
}
if modinfo iommufd > /dev/null 2>&1; then
    ( until pidof core-vmm > /dev/null && had_rightly; do sleep 1; done; echo "dma: by an iommufd" ) &
fi

device_row() { # DEVICE FIELD
    bulkhead device ls lab --json 2> /dev/null | jq -r ".[] | select(.name == \"$1\") | .$2 // empty"
}

kill_serving_pid() { # DEVICE
    local pid
    pid=$(bulkhead device ls lab --json | jq -r ".[] | select(.name == \"$1\" and .state == \"serving\") | .pid")
    [ "$pid" ] && kill -KILL "$pid"
}

# Kills the process that serves a device as often as is said, while the guest's load runs; then says "enough" on the guest's serial port.
kill_device_while_loaded() { # DEVICE TIMES [HOW]
    local kills=0
    guest_wait_for 'load: begin' 400 || return
    while [ $kills -lt "$2" ] && ! grep -aq 'load: end' out/console && [ ! -e out/status ]; do
        "${3:-kill_serving_pid}" "$1" && kills=$(( kills + 1 ))
        sleep 0.1
    done
    guest_type enough
    guest_wait_for 'load: end' 200 || return
    echo "kills: $kills, restarts: $(device_row "$1" restarts), last death: $(device_row "$1" last_death)"
    [ $kills -ge "$2" ] || { echo "scenario: less than $2 kills"; return 1; }
}

out_and_in() { # DEVICE ADDRESS WORD
    guest_wait_for "$3: out" 200 && bulkhead device detach lab "$1" || return
    guest_wait_for "$3: in" 100 && bulkhead device attach lab --pci "$2" --name "$1" && had_rightly
}
