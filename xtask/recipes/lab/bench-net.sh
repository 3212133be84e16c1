# Both guests send to a neighbour on their bridge and receive from it, in turns; sourced after net.sh and bench.sh. Each has two
# NICs. What QEMU's first one sends goes through QEMU itself, what its second one sends through the kernel's vhost-net; the process of our
# first one is confined, that of the second one sees all of the guest's memory.
neighbour_start 1500 && modprobe vhost_net || exit 1
bulkhead net port add tap1 --bridge br0 --vlan 1 && ip link set tap1 mtu 1500 && ip -n neighbour address add 10.0.3.1/24 dev eth0 || exit 1
for n in 1 2; do
    ip tuntap add dev peer$n mode tap vnet_hdr && ip link set peer$n master br0 up \
        && bridge vlan add dev peer$n vid 1 pvid untagged && ip -n neighbour address add 10.0.$n.1/24 dev eth0 || exit 1
done
guest_start bench.toml > /dev/null
peer_start -netdev tap,id=user,ifname=peer1,script=no,downscript=no,vhost=off -device virtio-net-pci,netdev=user,mac=02:00:00:00:00:11 \
    -netdev tap,id=vhost,ifname=peer2,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=vhost,mac=02:00:00:00:00:12
both_ready || exit 1
names=(ours user vhost full)
for (( round = 0; round <= ${ROUNDS:-7}; round++ )); do
    for way in send receive; do
        for (( n = 0; n < 4; n++ )); do
            # Who goes first changes, so that a drift of the machine's speed favours nobody.
            nic=$(( (n + round) % 4 )) who=ours
            case $nic in 1 | 2) who=peer ;; esac
            ask $who $round "$nic $way" "${names[$nic]}_$way" || exit 1
        done
    done
done
both_end
