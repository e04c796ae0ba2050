#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs the packages in a fresh Debian, uses them, and removes them. Their files are arguments.

# Each command is in the log: the last one is what failed.
set -ex

kernel=@KERNEL@
# This Debian is that of the image, which leaves manuals out.
rm -f /etc/dpkg/dpkg.cfg.d/*
# A stand-in for the kernel's package.
mkdir -p "/usr/lib/modules/$kernel/kernel"
depmod "$kernel"
# Another kernel, which had the modules of an earlier package: they are not forgotten yet.
mkdir -p /usr/lib/modules/1.2.3-earlier/kernel
depmod 1.2.3-earlier
echo "extra/sysgenid.ko:" > /usr/lib/modules/1.2.3-earlier/modules.dep
find / -xdev -path /proc -prune -o -path /pkg -prune -o -print | sort > /before

dpkg -i "$@"
# The same again is an upgrade.
dpkg -i "$@"

for package in vmgenie vmgenie-guest; do
    [ "$(dpkg-query -W -f '${Status}' $package)" = "install ok installed" ]
    # Each file is as it is in the package.
    [ -z "$(dpkg --verify $package)" ]
    [ -s "/usr/share/doc/$package/copyright" ]
done
vmgenie --version
sysgenctl --version
vmgenie ps
[ -s /usr/share/bash-completion/completions/vmgenie ]
[ -s /usr/share/man/man1/vmgenie.1.gz ]
for module in sysgenid sysgenid_vmgenid; do
    grep -q "extra/$module.ko" "/usr/lib/modules/$kernel/modules.dep"
done
if grep sysgenid /usr/lib/modules/1.2.3-earlier/modules.dep; then
    echo "the earlier kernel still knows of modules that have gone" >&2
    exit 1
fi
[ -x /etc/sysgenid/adapt.d/identity/10-machine-id ]
[ -x /etc/sysgenid/adapt.d/service/30-dhcp ]
[ -e /usr/lib/systemd/system/sysgenctl-agent.service ]

# A hook that its owner has changed is kept at a removal, as conffiles are, and goes at a purge.
echo '# mine' >> /etc/sysgenid/adapt.d/identity/10-machine-id
dpkg --remove vmgenie vmgenie-guest
grep -q mine /etc/sysgenid/adapt.d/identity/10-machine-id
[ ! -e /usr/bin/vmgenie ]
[ ! -e /usr/bin/sysgenctl ]
dpkg --purge vmgenie vmgenie-guest
if grep sysgenid "/usr/lib/modules/$kernel/modules.dep"; then
    echo "the kernel still knows of the modules" >&2
    exit 1
fi

find / -xdev -path /proc -prune -o -path /pkg -prune -o -print | sort > /after
if ! left=$(diff /before /after | grep '^>' | grep -v -e '/after$' -e '/before$' -e '/var/lib/dpkg/' -e '/var/log/'); then
    left=
fi
if [ -n "$left" ]; then
    echo "the packages left behind:" >&2
    echo "$left" >&2
    exit 1
fi
