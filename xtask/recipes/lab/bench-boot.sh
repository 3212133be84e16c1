# The boot benchmark, in one boot of the lab host; sourced after guest.sh. Prints lines "figure NAME VALUE"; whoever
# called us makes sense of them. Ours and the peer's runs alternate, so that both meet the same weather.

# The time in milliseconds until init speaks on the console.
until_init() { # COMMAND...
    local start=$EPOCHREALTIME line
    while IFS= read -r line; do
        case $line in
            *bulkhead-init:*) awk "BEGIN { printf \"%.1f\\n\", ($EPOCHREALTIME - $start) * 1000 }"; cat > /dev/null; return ;;
        esac
    done < <("$@" < /dev/null 2> /dev/null)
    echo 'bench: init never spoke' >&2
    return 1
}
peer() { # KERNEL
    exec qemu-system-x86_64 -M q35 -accel kvm -cpu host -m 512 -smp 1 -nodefaults -no-user-config -display none \
        -no-reboot -serial stdio -kernel "$1" -initrd tiny.cpio -append 'console=ttyS0 quiet mitigations=off'
}
# Once without measuring, so that every file is in the page cache.
until_init bulkhead run tiny-elf.toml > /dev/null || exit 1
until_init peer bookworm/vmlinux > /dev/null || exit 1
until_init peer bookworm/vmlinuz > /dev/null || exit 1
ours_elf() { exec bulkhead run tiny-elf.toml; }
ours_bzimage() { exec bulkhead run tiny-bzimage.toml; }
peer_elf() { peer bookworm/vmlinux; }
peer_bzimage() { peer bookworm/vmlinuz; }
for (( round = 0; round < ${ROUNDS:-7}; round++ )); do
    for kernel in elf bzimage; do
        # Who goes first changes, so that a drift of the machine's speed favours nobody.
        if (( round % 2 )); then order='peer ours'; else order='ours peer'; fi
        for who in $order; do
            echo "figure ${who}_$kernel $(until_init ${who}_$kernel)"
        done
    done
done

# Returns of KVM_RUN to user space, by KVM's own tracepoint, while the guest reads.
trace=/sys/kernel/tracing
[ -d $trace/events ] || mount -t tracefs tracefs $trace
modprobe kvm_amd
exits() { awk '/Hits:/ { print $2 }' $trace/events/kvm/kvm_userspace_exit/hist; }
echo 'hist:keys=reason' > $trace/events/kvm/kvm_userspace_exit/trigger
guest_start reads.toml
if guest_wait_for 'reads: begin' 400; then
    before=$(exits)
    cat $trace/events/kvm/kvm_userspace_exit/hist > out/exits-before
    guest_wait_for 'reads: end' 400
    after=$(exits)
    cat $trace/events/kvm/kvm_userspace_exit/hist > out/exits-after
    echo "figure reads 4000"
    echo "figure exits $(( after - before ))"
fi
guest_end > out/reads-end

# Private memory of each process while the guest sits at its login prompt.
guest_start login.toml > /dev/null
if guest_wait_for 'login: ' 400; then
    sleep 5
    for pid in $(ours); do
        echo "figure dirty_$(cat /proc/$pid/comm) $(private_dirty $pid)"
    done
    guest_type root
    guest_wait_for '# ' 60
    guest_type 'systemctl poweroff'
fi
guest_end > out/login-end
