# Two guests of the same image side by side, ours and QEMU's, that read the same file in turns; sourced after guest.sh.
# Prints lines "figure NAME VALUE". While one reads, the other one waits for a line on its serial port.
file=/var/tmp/bench.img
dd if=/dev/zero of=$file bs=1M count=256 conv=fsync status=none
cat $file > /dev/null
# The peer's own root disk: both write to theirs.
dd if=/dev/vdc of=/dev/vde bs=1M conv=sparse status=none

peer_start() {
    mkfifo peer-input
    exec 8<> peer-input
    qemu-system-x86_64 -M q35 -accel kvm -cpu host -m 512 -smp 1 -nodefaults -no-user-config -display none -no-reboot \
        -serial stdio -kernel bookworm/vmlinuz -initrd bookworm/initrd.img -object iothread,id=io \
        -blockdev driver=host_device,filename=/dev/vde,node-name=root -device virtio-blk-pci,drive=root \
        -blockdev driver=file,filename=$file,node-name=bench,aio=io_uring,read-only=on,locking=off \
        -device virtio-blk-pci,drive=bench,iothread=io \
        -append "root=LABEL=guest rw console=ttyS0 quiet mitigations=off bulkhead.run=$(base64 -w 0 bench-guest)" \
        <&8 > out/peer-console 2> out/peer-log &
    peer=$!
}

wait_for() { # CONSOLE PATTERN SECONDS
    local tries=$(( $3 * 10 ))
    until grep -aqE -e "$2" "$1"; do
        if (( (tries -= 1) < 0 )); then
            echo "bench: no '$2' in $1:"
            tail -n 20 "$1"
            return 1
        fi
        sleep 0.1
    done
}

read_once() { # WHO ROUND DEPTH
    local console=out/console line=9
    if [ "$1" = peer ]; then console=out/peer-console line=8; fi
    printf '%s\r' "$2 $3" >&$line
    wait_for $console "result $2 $3 [0-9]+" 120 || return 1
    # One that does not count, to warm up.
    [ "$2" = 0 ] || echo "figure $1_$3 $(grep -aoE "result $2 $3 [0-9]+" $console | cut -d ' ' -f 4)"
}

guest_start storage.toml > /dev/null
peer_start
wait_for out/console 'bench: ready' 400 || exit 1
wait_for out/peer-console 'bench: ready' 400 || exit 1
for (( round = 0; round <= ${ROUNDS:-7}; round++ )); do
    for depth in 1 32; do
        # Who goes first changes, so that a drift of the machine's speed favours nobody.
        if (( round % 2 )); then order='peer ours'; else order='ours peer'; fi
        for who in $order; do
            read_once "$who" $round $depth || exit 1
        done
    done
done
printf 'end\r' >&8
guest_type end
guest_end > out/end
wait $peer
