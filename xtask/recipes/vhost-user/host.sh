# A stock guest on QEMU, its root disk and its NIC served by our daemons, which are killed in turns while it works. Bash, as root of
# a network namespace of its own, in a directory of its own.
#
# $BIN: our programs. $GUEST: directory with the guest's kernel and initrd. $RECONNECT: how
# QEMU's sockets are told to reconnect. $KILLS: least number of kills. $LIMIT: seconds that the guest may take.
set -u
exec 2>&1
rm -f ended ./*.sock ./*.pid; : > console

# Keeps a daemon running: what a service manager does, without a pause.
keep() { # NAME COMMAND...
    local name=$1
    shift
    while [ ! -e ended ]; do
        "$@" < /dev/null >> "$name.log" 2>&1 &
        echo $! > "$name.pid"
        wait $!
        echo "daemon: ended with $?" >> "$name.log"
        # One that cannot start is not to fill a disk with its complaints.
        [ -e ended ] || sleep 0.02
    done
}

over() {
    : > ended
    local name
    for name in disk nic; do
        [ ! -s $name.pid ] || kill -KILL "$(cat $name.pid)"
    done
    kill $(jobs -p)
    wait
} 2> /dev/null
trap over EXIT

# A kernel's command line is too short for what the guest does: it comes on the disk.
PATH=$PATH:/usr/sbin:/sbin
debugfs -w -R 'write guest /usr/lib/bulkhead/jobs/vhost-user' root.img 2> /dev/null || exit
ip link set lo up || exit
ip tuntap add tap0 mode tap vnet_hdr && ip address add 10.0.0.1/24 dev tap0 && ip link set tap0 up || exit
iperf3 --server --bind 10.0.0.1 > iperf3.log 2>&1 &

keep disk "$BIN/vsp-storage" --device disk0 --vhost-user "$PWD/disk.sock" --disk "path=$PWD/root.img" 2> /dev/null &
keep nic "$BIN/vsp-net" --device nic0 --vhost-user "$PWD/nic.sock" --mac 52:54:00:12:34:56 --tap tap0 2> /dev/null &
for socket in disk.sock nic.sock; do
    for _ in {1..100}; do [ ! -S $socket ] || break; sleep 0.1; done
    [ -S $socket ] || { echo "vhost-user: no $socket"; tail -n 20 disk.log nic.log; exit 1; }
done

# Queues of 1024: the longest, and as much as can be in flight.
# Without vectors (MSI-X): Debian 12's QEMU 7.2 without KVM crashed when the guest unmasked those of this NIC. Others have not been tried.
timeout "$LIMIT" qemu-system-x86_64 -nodefaults -no-user-config -nographic -no-reboot -machine q35,memory-backend=ram \
    -accel tcg,tb-size=512 -cpu max -smp 2 -m 512 -object memory-backend-memfd,id=ram,size=512M,share=on \
    -kernel "$GUEST/vmlinuz" -initrd "$GUEST/initrd.img" -serial file:console \
    -append "root=/dev/vda rw console=ttyS0 quiet mitigations=off no_timer_check bulkhead.job=vhost-user" \
    -chardev "socket,id=disk,path=disk.sock,$RECONNECT" -device vhost-user-blk-pci,chardev=disk,num-queues=2,queue-size=1024 \
    -chardev "socket,id=nic,path=nic.sock,$RECONNECT" -netdev vhost-user,id=nic,chardev=nic \
    -device virtio-net-pci,netdev=nic,mac=52:54:00:12:34:56,romfile=,vectors=0 > qemu.log 2>&1 &
qemu=$!

alive() { kill -0 $qemu 2> /dev/null; }
until grep -aq 'load: begin' console || ! alive; do sleep 0.2; done
# One of the two each second; a daemon is left to come back first, for killing faster than an emulated guest works would only show
# that nothing gets done.
kills=0
while alive && ! grep -aq 'load: end' console; do
    for name in disk nic; do
        sleep 1
        grep -aq 'load: end' console || { kill -KILL "$(cat $name.pid)" && kills=$((kills + 1)); }
    done
done
wait $qemu
status=$?
cat console
echo "qemu: status $status"; cat qemu.log
grep -v 'daemon: ended' disk.log | tail -n 15; grep -v 'daemon: ended' nic.log | tail -n 15
echo "kills: $kills"
[ $status = 0 ] || exit 1
[ $kills -ge "$KILLS" ] || { echo "vhost-user: fewer than $KILLS kills"; exit 1; }
# What died by itself is a fault, whatever the guest has noticed of it: 137 is SIGKILL.
grep -h 'daemon: ended' disk.log nic.log | grep -v 'with 137' && { echo 'vhost-user: BAD a daemon died by itself'; exit 1; }
e2fsck -fn root.img && echo 'file system: clean'
