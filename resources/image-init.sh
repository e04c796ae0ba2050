#!/bin/sh
# Process 1 of the initramfs of the Debian image: loads what the root drive needs, and goes on there.
export PATH=/bin

mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys

while read -r module; do
    insmod "/modules/$module"
done < /modules/order

root=/dev/vda mode=rw init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) mode=$word ;;
    esac
done
case $root in
    *UUID=* | LABEL=*) root=$(findfs "$root") ;;
esac

# A drive appears some time after its driver.
tries=0
until [ -b "$root" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ]; then
        echo "initramfs: there is no $root. This shell is what there is; exit ends the machine."
        setsid cttyhack sh
        poweroff -f
    fi
    sleep 0.05
done
mount -t ext4 -o "$mode" "$root" /root || {
    echo "initramfs: could not mount $root. This shell is what there is; exit ends the machine."
    setsid cttyhack sh
    poweroff -f
}
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root "$init"
