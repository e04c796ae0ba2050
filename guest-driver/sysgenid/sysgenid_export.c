// SPDX-License-Identifier: GPL-2.0
/*
 * What sysgenid, which is written in Rust, exports to its backends. Rust has
 * no EXPORT_SYMBOL_GPL() of its own for modules, and what is a function or not
 * by the kernel's configuration is called from here.
 */

#include <linux/export.h>
#include <linux/nmi.h>
#include <linux/processor.h>
#include <linux/rcupdate.h>
#include <linux/stop_machine.h>
#include <linux/sysgenid.h>

int sysgenid_stop_machine(int (*still)(void *data), void *data)
{
	return stop_machine(still, data, NULL);
}
EXPORT_SYMBOL_GPL(sysgenid_stop_machine);

void sysgenid_relax(void)
{
	touch_nmi_watchdog();
	rcu_momentary_eqs();
	cpu_relax();
}
EXPORT_SYMBOL_GPL(sysgenid_relax);

EXPORT_SYMBOL_GPL(sysgenid_bump_generation);
EXPORT_SYMBOL_GPL(sysgenid_bump_generation_to);
EXPORT_SYMBOL_GPL(sysgenid_register_backend);
EXPORT_SYMBOL_GPL(sysgenid_unregister_backend);
EXPORT_SYMBOL_GPL(sysgenid_counter);
EXPORT_SYMBOL_GPL(sysgenid_told);
EXPORT_SYMBOL_GPL(sysgenid_begin_generation);
EXPORT_SYMBOL_GPL(sysgenid_ask);
EXPORT_SYMBOL_GPL(sysgenid_over);
EXPORT_SYMBOL_GPL(sysgenid_hold);
EXPORT_SYMBOL_GPL(sysgenid_held_told);
EXPORT_SYMBOL_GPL(sysgenid_held_begin);
