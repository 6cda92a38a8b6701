#!/bin/sh
# First program of the guest (L2), in its initramfs. With bulkhead.test=NAME on the kernel's command line it runs that
# test; with root=, it goes on to that disk, and there to init=; else it gives a shell.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
test= root= access=ro init=/sbin/init
for word in $(cat /proc/cmdline); do
    case "$word" in
        bulkhead.test=*) test="${word#*=}" ;;
        root=*) root="${word#*=}" ;;
        init=*) init="${word#*=}" ;;
        rw) access=rw ;;
    esac
done
while read -r module; do insmod "/modules/$module"; done < /modules/order
echo "bulkhead-guest: initramfs"

if [ -n "$test" ] && [ -z "$root" ]; then
    # The test is run by this process, not by a child, because some tests are about the end of the first process.
    . "/tests/$test"
    echo "bulkhead-guest: the test $test came back"
elif [ -n "$root" ]; then
    if mount -o "$access" -t ext4 "$root" /root; then
        for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
        exec switch_root /root "$init"
    fi
    echo "bulkhead-guest: $root cannot be mounted"
else
    exec setsid -c sh -l < /dev/ttyS0 > /dev/ttyS0 2>&1
fi
poweroff -f
