#!/bin/sh
# Process 1 of the guests of the tests. Commands arrive as lines on the console; each is answered
# by its output and a line with its exit status.
export PATH=/bin:/usr/bin HOME=/tmp TERM=linux

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing

while read -r module; do
    insmod "/modules/$module"
done < /modules/order

# Shows in the trace the very 16 bytes that a VMGENID driver hands to the RNG.
probes=/sys/kernel/tracing/kprobe_events
if [ -e "$probes" ]; then
    echo 'p:vmgenid add_vmfork_randomness lo=+0(%di):x64 hi=+8(%di):x64' >> "$probes" &&
        echo 1 > /sys/kernel/tracing/events/kprobes/vmgenid/enable
fi

if grep -qw vmgenie.shell /proc/cmdline; then
    setsid cttyhack sh
    poweroff -f
fi

stty -echo
echo '@@ready'
while :; do
    if IFS= read -r line; then
        [ -n "$line" ] || continue
        eval "$line"
        echo "@@exit:$?"
    else
        # The end of the input: the console's other side is gone, and may come back.
        sleep 1
    fi
done
