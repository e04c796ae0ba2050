// SPDX-License-Identifier: GPL-2.0
/*
 * What sysgenid, which is written in Rust, exports to its backends. Rust has
 * no EXPORT_SYMBOL_GPL() of its own for modules.
 */

#include <linux/export.h>
#include <linux/sysgenid.h>

EXPORT_SYMBOL_GPL(sysgenid_bump_generation);
EXPORT_SYMBOL_GPL(sysgenid_bump_generation_to);
EXPORT_SYMBOL_GPL(sysgenid_register_backend);
EXPORT_SYMBOL_GPL(sysgenid_unregister_backend);
EXPORT_SYMBOL_GPL(sysgenid_counter);
EXPORT_SYMBOL_GPL(sysgenid_told);
EXPORT_SYMBOL_GPL(sysgenid_begin_generation);
