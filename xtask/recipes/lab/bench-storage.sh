# Both guests read the same file in turns; sourced after bench.sh.
file=/var/tmp/bench.img
dd if=/dev/zero of=$file bs=1M count=256 conv=fsync status=none
cat $file > /dev/null

guest_start bench.toml > /dev/null
peer_start -object iothread,id=io -blockdev driver=file,filename=$file,node-name=bench,aio=io_uring,read-only=on,locking=off \
    -device virtio-blk-pci,drive=bench,iothread=io
both_ready || exit 1
for (( round = 0; round <= ${ROUNDS:-7}; round++ )); do
    for depth in 1 32; do
        # Who goes first changes, so that a drift of the machine's speed favours nobody.
        if (( round % 2 )); then order='peer ours'; else order='ours peer'; fi
        for who in $order; do
            ask "$who" $round $depth "${who}_$depth" || exit 1
        done
    done
done
both_end
