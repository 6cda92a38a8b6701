# Runs the benchmark in the lab's host; xtask puts assignments before it: runs, memory, limit, qemu (the words that
# run it) and qemu_console.
export TMPDIR=/bulkhead/bench
mkdir -p "$TMPDIR" && chmod 1777 "$TMPDIR"
kernel=/bulkhead/guest/vmlinuz initrd=/bulkhead/guest/initrd.cpio disk="$TMPDIR/disk.img"
dd if=/dev/zero of="$disk" bs=1M count=64 2> /dev/null && sync || exit 1
status=0

# measure LABEL WORDS [IMAGE]: boots with these words on the kernel's command line.
measure() {
    label="$1" words="panic=-1 $2" image="$3"
    case "$label" in
        bulkhead*)
            set -- /bulkhead/bin/broker run -k "$kernel" -i "$initrd" -m "$memory" -c 1 -p "console=ttyS0 $words"
            if [ -n "$image" ]; then set -- "$@" -d "$image:rw"; fi
            ;;
        *)
            set -- $qemu -enable-kvm -cpu host -m "$memory" -smp 1 -nodefaults -no-user-config -display none -serial stdio \
                -no-reboot -kernel "$kernel" -initrd "$initrd" -append "console=$qemu_console $words"
            if [ -n "$image" ]; then
                set -- "$@" -drive "id=disk,file=$image,format=raw,if=none" -device virtio-blk-device,drive=disk
            fi
            ;;
    esac
    /bulkhead/bin/stopwatch "$label" "bench: user space" "$limit" -- "$@" || status=1
}

# The first run of each reads its files from the lab's disk, and does not count.
for subject in bulkhead qemu; do measure "$subject warm" bench=boot; done
for run in $(seq "$runs"); do
    for subject in bulkhead qemu; do measure "$subject boot" bench=boot; done
    for subject in bulkhead qemu; do measure "$subject quiet" "bench=boot quiet"; done
    for subject in bulkhead qemu; do measure "$subject disk" "bench=disk quiet" "$disk"; done
done
exit $status
