# Customises the lab host ("L1"); run by mmdebstrap with the root directory as $1.
# The lab host boots once, is frozen when its agent says so, and every run starts from there.
set -eu
root=$1

echo lab > "$root/etc/hostname"
echo 0b0dca7d8e2f4d6ab1f24c3a5d6e7f81 > "$root/etc/machine-id"
echo '/dev/vda / ext4 rw,relatime 0 0' > "$root/etc/fstab"
echo 'export PATH=/job/bin:$PATH' > "$root/etc/profile.d/bulkhead.sh"
printf 'kvm_amd\nvirtio_console\nvhost_net\ntun\n' > "$root/etc/modules-load.d/bulkhead.conf"
chroot "$root" passwd --delete root

# udev must not read disks that differ from run to run: what it saw would stay in the page cache.
echo 'KERNEL=="vd[b-z]", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"' \
    > "$root/etc/udev/rules.d/10-bulkhead.rules"

mkdir -p "$root/usr/lib/bulkhead"
cat > "$root/usr/lib/bulkhead/agent" <<'AGENT'
#!/bin/bash
# Waits, frozen, for an order on the control port; unpacks the job disk; runs it; reports.
exec 3<>/dev/virtio-ports/bulkhead.control
exec 4>/dev/virtio-ports/bulkhead.output
export PATH=/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
unset JOURNAL_STREAM INVOCATION_ID
mkdir -p /job
mount -t tmpfs -o size=90%,mode=755 job /job
until [ -c /dev/kvm ]; do sleep 0.2; done
systemctl is-system-running --wait > /dev/null
sync
echo 3 > /proc/sys/vm/drop_caches
printf '\0bulkhead-ready\n' >&4

read -r order now rows columns <&3
date -s "@$now" > /dev/null
blockdev --flushbufs /dev/vd[b-e]
cd /job
mkdir -p out bin /var/lib/bulkhead-bin
# Programs lie on a disk, as installed ones do: pages of a file in memory would count as dirty memory of whoever runs it.
mount --bind /var/lib/bulkhead-bin bin
if ! tar -x -f /dev/vdb; then
    printf '\0bulkhead-done 125 0\n' >&4
    exit
fi
sync -f bin
if [ "$order" = shell ]; then
    export TERM=linux
    stty -F /dev/ttyS0 sane rows "${rows:-24}" columns "${columns:-80}"
    setsid --ctty --wait bash -l < /dev/ttyS0 > /dev/ttyS0 2>&1
    status=$?
else
    mkfifo /run/bulkhead-output
    cat < /run/bulkhead-output >&4 &
    cat=$!
    setsid bash ./run.sh < /dev/null > /run/bulkhead-output 2>&1 &
    job=$!
    wait $job
    status=$?
    pkill -KILL -s $job
    ( sleep 5; kill $cat ) 2> /dev/null &
    wait $cat
fi
cd /
tar -c -C /job/out -f /run/results.tar .
printf '\0bulkhead-done %d %d\n' $status "$(stat -c %s /run/results.tar)" >&4
cat /run/results.tar >&4
AGENT
chmod 755 "$root/usr/lib/bulkhead/agent"

cat > "$root/etc/systemd/system/bulkhead-agent.service" <<'UNIT'
[Unit]
Description=Bulkhead lab agent
After=systemd-udev-settle.service systemd-modules-load.service dev-virtio\x2dports-bulkhead.control.device
Wants=dev-virtio\x2dports-bulkhead.control.device
[Service]
ExecStart=/usr/lib/bulkhead/agent
KillMode=process
LimitMEMLOCK=infinity
LimitNOFILE=65536
TasksMax=infinity
OOMScoreAdjust=-900
[Install]
WantedBy=multi-user.target
UNIT
ln -s /etc/systemd/system/bulkhead-agent.service "$root/etc/systemd/system/multi-user.target.wants/"

for unit in getty.target serial-getty@ttyS0.service getty@tty1.service systemd-timesyncd.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-tmpfiles-clean.timer systemd-networkd.service systemd-resolved.service \
    systemd-update-utmp.service systemd-journal-flush.service iperf3.service ssh.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# noVNC as Debian ships it, without what serves it there (Node.js among them).
(cd "$root/tmp" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --quiet=2 download novnc && dpkg-deb -x novnc_*.deb "$root" && rm novnc_*.deb)
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
