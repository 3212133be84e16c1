# Functions for benches with two guests of the same image side by side, ours and QEMU's; sourced after guest.sh. While one works,
# the other one waits for a line on its serial port.

# The peer's own root disk: both write to theirs.
case ${BENCH_GUEST:=bookworm} in trixie) root=/dev/vdd ;; *) root=/dev/vdc ;; esac
dd if=$root of=/dev/vde bs=1M conv=sparse status=none

peer_start() { # OPTIONS...
    mkfifo peer-input
    exec 8<> peer-input
    qemu-system-x86_64 -M q35 -accel kvm -cpu host -m 512 -smp 1 -nodefaults -no-user-config -display none -no-reboot \
        -serial stdio -kernel $BENCH_GUEST/vmlinuz -initrd $BENCH_GUEST/initrd.img \
        -blockdev driver=host_device,filename=/dev/vde,node-name=root -device virtio-blk-pci,drive=root "$@" \
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

both_ready() {
    wait_for out/console 'bench: ready' 400 && wait_for out/peer-console 'bench: ready' 400
}

# Prints a line "figure NAME VALUE", unless it is round 0, which is there to warm up.
ask() { # WHO ROUND WHAT NAME
    local console=out/console line=9
    if [ "$1" = peer ]; then console=out/peer-console line=8; fi
    printf '%s\r' "$2 $3" >&$line
    wait_for $console "result $2 $3 [0-9]+" 120 || return 1
    [ "$2" = 0 ] || echo "figure $4 $(grep -aoE "result $2 $3 [0-9]+" $console | awk '{ print $NF }')"
}

both_end() {
    printf 'end\r' >&8
    guest_type end
    guest_end > out/end
    wait $peer
}
