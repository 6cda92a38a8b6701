#!/bin/sh
# First program of the lab's host (L1) on its disk: makes a small Linux system with a /dev/kvm, runs /bulkhead/run, says
# how that ended in a line that nothing else can print (the nonce is on the kernel's command line), and powers off.
export PATH=/bin:/sbin HOME=/root TERM="${TERM:-linux}"
nonce=none
for word in $(cat /proc/cmdline); do
    case "$word" in
        bulkhead.nonce=*) nonce="${word#*=}" ;;
        console=*) console="/dev/${word#*=}" ;;
    esac
done

mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ip link set lo up
hostname lab
# What would be printed in the middle of a line of the tests stays in dmesg.
echo 1 > /proc/sys/kernel/printk
# Should a process of ours crash, the kernel's log has its registers; arm64 has to be told.
echo 1 > /proc/sys/debug/exception-trace

while read -r module; do
    case "$module" in
        kvm_amd.ko) insmod "/modules/$module" $(cat /modules/kvm_amd.options) ;;
        *) insmod "/modules/$module" ;;
    esac
done < /modules/order
if [ -e /dev/kvm ]; then
    chgrp kvm /dev/kvm && chmod 660 /dev/kvm
else
    echo "bulkhead-lab: there is no /dev/kvm in the lab"
    dmesg | tail -n 20
fi

# Now and then the x86_64 emulator forgets that it has to interrupt the processor, which sleeps then for good, because its timer
# fires once and has fired. As long as an alarm of the clock is pending, the HPET interrupts 64 times a second, and wakes it.
alarm=/sys/class/rtc/rtc0/wakealarm
if [ -w "$alarm" ]; then echo +80000 > "$alarm"; fi

cd /bulkhead || exit 1
# A session of its own, with the console as its controlling terminal, so that Ctrl-C and raw mode work.
setsid -c /bulkhead/run < "$console" > "$console" 2>&1
status=$?
stty sane < "$console"
if [ "$status" != 0 ]; then
    echo "bulkhead-lab: the last lines of the lab's kernel log:"
    dmesg | tail -n 60
fi
sync
echo
echo "bulkhead-lab: end $nonce status=$status"
poweroff -f
