#!/bin/sh
# First program of the guest's root file system, after switch_root: runs the test that the command line names, or hands
# over to busybox init, which keeps a login shell on the console (/etc/inittab).
export PATH=/bin:/sbin
for word in $(cat /proc/cmdline); do
    case "$word" in
        bulkhead.test=*)
            echo "bulkhead-guest: root file system"
            . "/tests/${word#*=}"
            echo "bulkhead-guest: the test ${word#*=} came back"
            poweroff -f
            ;;
    esac
done
exec /bin/init
