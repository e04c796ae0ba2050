#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# This machine's name, and two numbers that no other answer may ever have: one that the kernel draws, and the
# next one of a generator in user space.
#
# That generator is what many programs have. It was seeded once, its state lies in memory, and so it would go on
# in the same way in each copy of this machine. It looks at the generation before each draw, and takes a fresh
# seed in one that it does not know.

file=/run/nonces

read -r name < /proc/sys/kernel/hostname
read -r drawn < /proc/sys/kernel/random/uuid
read -r now < /sys/kernel/debug/sysgenid/generation
seeded=
state=
if [ -r "$file" ]; then
    read -r seeded state < "$file"
fi
if [ "$seeded" != "$now" ]; then
    read -r seed < /proc/sys/kernel/random/uuid
    state=$state$seed
fi
sum=$(printf %s "$state" | sha256sum)
sum=${sum%% *}
# One half is told, the other is the next state.
state=${sum#????????????????????????????????}
printf '%s\n' "$now $state" > "$file"

printf '%s\r\n' 'Content-Type: text/plain; charset=utf-8' 'Cache-Control: no-store' ''
printf '%s %s %s\n' "$name" "$drawn" "${sum%"$state"}"
