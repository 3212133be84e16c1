# Functions for scenarios with a NIC; sourced after guest.sh. What the guest talks to lives in network namespaces of its own.
# A new host asks for a name in vain otherwise, and waits.
echo 'nameserver 198.51.100.1' > /etc/resolv.conf

# The world outside, which the host reaches by a router, 192.0.2.1: 198.51.100.1 there is outside.test, and resolves names.
world_start() {
    ip netns add world && ip link add up0 type veth peer name eth0 netns world || return
    ip -n world link set lo up && ip -n world link set eth0 up && ip link set up0 up || return
    ip -n world address add 192.0.2.1/24 dev eth0 && ip -n world address add 198.51.100.1/32 dev lo || return
    # passt sends a guest's pings by sockets that Debian 12 gives to nobody.
    sysctl -qw net.ipv4.ping_group_range='0 2147483647'
    ip address add 192.0.2.2/24 dev up0 && ip route add default via 192.0.2.1 || return
    ip netns exec world dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file=/run/world-dns \
        --listen-address=198.51.100.1 --bind-interfaces --address=/outside.test/198.51.100.1 || return
    ip netns exec world iperf3 --server --daemon
}

# Kills the passt of the guest's NIC when the guest says so.
kill_passt() {
    guest_wait_for 'passt: may die' 300 && pkill -KILL '^passt' && echo 'passt: killed'
}

# A bridge br0 with the guest's tap0 and, as 10.0.0.1, a neighbour; both may send VLAN 20 with tags, where that is 10.0.20.1.
neighbour_start() { # MTU
    bulkhead net bridge add br0 && bulkhead net port add tap0 --bridge br0 --vlan 1 --trunk 20 || return
    ip netns add neighbour && ip link add port0 type veth peer name eth0 netns neighbour || return
    ip link set port0 mtu "$1" master br0 up && ip link set tap0 mtu "$1" && bridge vlan add dev port0 vid 20 || return
    ip -n neighbour link set lo up && ip -n neighbour link set eth0 mtu "$1" up || return
    ip -n neighbour link add link eth0 name eth0.20 type vlan id 20 && ip -n neighbour link set eth0.20 up || return
    ip -n neighbour address add 10.0.0.1/24 dev eth0 && ip -n neighbour address add 10.0.20.1/24 dev eth0.20 || return
    ip netns exec neighbour iperf3 --server --daemon
}

# The neighbour serves files by SSH, to a root without a password.
neighbour_serves() {
    mkdir -p /run/sshd
    ip netns exec neighbour /usr/sbin/sshd -o PermitRootLogin=yes -o PermitEmptyPasswords=yes -o UsePAM=no -o UseDNS=no
}

# Kills the process that serves the NIC a second after the last time, until the guest's load ends.
kill_nic_while_loaded() { # LEAST
    local kills=0 pid
    guest_wait_for 'load: begin' 300 || return
    while ! grep -aq 'load: end' out/console && [ ! -e out/status ]; do
        sleep 1
        pid=$(bulkhead device ls lab --json | jq '.[] | select(.name == "nic0" and .state == "serving") | .pid')
        [ "$pid" ] && kill -KILL "$pid" && kills=$(( kills + 1 ))
    done
    echo "kills: $kills, $(bulkhead device ls lab --json | jq -c '.[] | select(.name == "nic0") | {restarts, last_death}')"
    [ $kills -ge "$1" ] || { echo "scenario: less than $1 kills"; return 1; }
}
