# Both guests send to a neighbour on their bridge and receive from it, in turns; sourced after net.sh and bench.sh. QEMU's has two
# NICs: what the first one sends goes through QEMU itself, what the second one sends through the kernel's vhost-net.
neighbour_start 1500 && modprobe vhost_net || exit 1
for n in 1 2; do
    ip tuntap add dev peer$n mode tap vnet_hdr && ip link set peer$n master br0 up \
        && bridge vlan add dev peer$n vid 1 pvid untagged && ip -n neighbour address add 10.0.$n.1/24 dev eth0 || exit 1
done
guest_start bench.toml > /dev/null
peer_start -netdev tap,id=user,ifname=peer1,script=no,downscript=no,vhost=off -device virtio-net-pci,netdev=user,mac=02:00:00:00:00:11 \
    -netdev tap,id=vhost,ifname=peer2,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=vhost,mac=02:00:00:00:00:12
both_ready || exit 1
names=(ours user vhost)
for (( round = 0; round <= ${ROUNDS:-7}; round++ )); do
    for way in send receive; do
        for (( n = 0; n < 3; n++ )); do
            # Who goes first changes, so that a drift of the machine's speed favours nobody.
            nic=$(( (n + round) % 3 )) who=peer
            [ $nic = 0 ] && who=ours
            ask $who $round "$nic $way" "${names[$nic]}_$way" || exit 1
        done
    done
done
both_end
