#!/bin/sh
# First program of the lab's host (L1), in its initramfs: finds the lab's disk and goes there. The host must not stay in
# the initramfs, because pivot_root(2), with which every jail is built, refuses to move the initial root file system.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
mount -t ext4 /dev/vda /root || { echo "bulkhead-lab: the lab's disk cannot be mounted"; poweroff -f; }
for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
exec switch_root /root /sbin/init
echo "bulkhead-lab: the lab's disk has no /sbin/init"
poweroff -f
