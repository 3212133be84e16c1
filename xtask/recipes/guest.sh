# Customises a stock Debian guest; run by mmdebstrap with the root directory as $1. Nothing in the kernel or
# its initrd is ours: what is added is a job runner, and a console that one can log in on.
#
# Kernel command line:
#   bulkhead.job=NAME     after boot, run /usr/lib/bulkhead/jobs/NAME ("disk": the script on /dev/sdb)
#   bulkhead.run=BASE64   after boot, run this script
#   bulkhead.then=WORD    and then: poweroff (default), reboot, stay
#   bulkhead.autologin    a root shell on ttyS0 instead of the login prompt (root has no password)
set -eu
root=$1

echo guest > "$root/etc/hostname"
# Not a first boot each time.
echo 0b0dca7d8e2f4d6ab1f24c3a5d6e7f80 > "$root/etc/machine-id"
echo 'LABEL=guest / ext4 rw,relatime,discard 0 0' > "$root/etc/fstab"
chroot "$root" passwd --delete root

mkdir -p "$root/usr/lib/bulkhead"
cat > "$root/usr/lib/bulkhead/run-job" <<'RUNNER'
#!/bin/bash
exec < /dev/null > /dev/console 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
word() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^bulkhead\.$1=//p" | head -n 1; }
job=$(word job)
case $job in
    '') job=inline; word run | base64 -d > /run/bulkhead-job ;;
    disk) tr -d '\0' < /dev/sdb > /run/bulkhead-job ;;
    *) cp "/usr/lib/bulkhead/jobs/$job" /run/bulkhead-job ;;
esac
echo "bulkhead-job: $job begin"
bash /run/bulkhead-job
echo "bulkhead-job: $job exit $?"
case $(word then) in
    stay) ;;
    reboot) systemctl reboot 2> /dev/null ;;
    *) systemctl poweroff 2> /dev/null ;;
esac
RUNNER
cat > "$root/usr/lib/bulkhead/getty" <<'GETTY'
#!/bin/sh
if grep -q 'bulkhead\.autologin' /proc/cmdline; then set -- --autologin root "$@"; fi
exec /sbin/agetty "$@"
GETTY
chmod 755 "$root/usr/lib/bulkhead/run-job" "$root/usr/lib/bulkhead/getty"

cat > "$root/etc/systemd/system/bulkhead-job.service" <<'UNIT'
[Unit]
Description=Job named on the kernel command line
ConditionKernelCommandLine=|bulkhead.job
ConditionKernelCommandLine=|bulkhead.run
After=multi-user.target
[Service]
Type=simple
ExecStart=/usr/lib/bulkhead/run-job
[Install]
WantedBy=multi-user.target
UNIT
ln -s /etc/systemd/system/bulkhead-job.service "$root/etc/systemd/system/multi-user.target.wants/"

# A getty hangs the line up under a job that writes to it.
mkdir -p "$root/etc/systemd/system/serial-getty@.service.d"
cat > "$root/etc/systemd/system/serial-getty@.service.d/bulkhead.conf" <<'UNIT'
[Unit]
ConditionKernelCommandLine=!bulkhead.job
ConditionKernelCommandLine=!bulkhead.run
[Service]
ExecStart=
ExecStart=-/usr/lib/bulkhead/getty --keep-baud 115200,57600,38400,9600 - $TERM
UNIT
# Under two layers of emulation every unit costs a second: leave out what no test looks at.
for unit in systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer getty-static.service \
    getty@tty1.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-random-seed.service \
    systemd-journal-flush.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
    systemd-pstore.service systemd-udev-load-credentials.service systemd-hibernate-clear.service \
    iperf3.service systemd-networkd.service systemd-networkd.socket systemd-hostnamed.socket systemd-sysext.socket; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
# Nothing is new since: no caches to rebuild at boot.
touch "$root/etc/.updated" "$root/var/.updated"
