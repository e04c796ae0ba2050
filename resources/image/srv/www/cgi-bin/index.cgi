#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Who this machine is, a line for each thing. By the shell's own means where it has some, because this is what
# a clone is asked for first.

hex() {
    # A number of the trace, 0x0123: eight bytes, the lowest first.
    digits=${1##*0x}
    while [ ${#digits} -lt 16 ]; do
        digits=0$digits
    done
    while [ -n "$digits" ]; do
        rest=${digits%??}
        id=$id${digits#"$rest"}
        digits=$rest
    done
}

id=
# The last line counts: it is that of this generation.
while read -r line; do
    case $line in
        *\ vmgenid:\ *)
            id=
            lo=${line##* lo=}
            hex "${lo%% *}"
            hex "${line##* hi=}"
            ;;
    esac
done < /sys/kernel/tracing/trace
read -r counter < /sys/kernel/debug/sysgenid/generation
read -r machine < /etc/machine-id
read -r name < /proc/sys/kernel/hostname
read -r _ key _ < /etc/ssh/ssh_host_ed25519_key.pub
address=$(ip -4 -o addr show dev eth0)
address=${address##* inet }

printf '%s\r\n' 'Content-Type: text/plain; charset=utf-8' 'Cache-Control: no-store' ''
printf '%s: %s\n' \
    generation-id "${id:-none since this machine booted}" \
    generation-counter "$counter" \
    machine-id "$machine" \
    hostname "$name" \
    address "${address%% *}" \
    ssh-host-key "$key"
