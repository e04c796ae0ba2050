// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: holds one task, once, at the place where it has extracted a key
 * from the input pool and not gone on yet, as a preemption there would. Its
 * CPU does nothing else meanwhile, so that interrupts have to go elsewhere.
 *
 * insmod crng_delay.ko symbol=extract_entropy.constprop.0 task=NAME
 */

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

static char *symbol;
module_param(symbol, charp, 0444);
MODULE_PARM_DESC(symbol, "The function that extracts, as kallsyms has it");

static char *task;
module_param(task, charp, 0444);
MODULE_PARM_DESC(task, "The name of the task that is held");

static unsigned int milliseconds = 10000;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "For how long, less than the lockup watchdogs take");

static bool armed = true;

/* Not 0: the return is of no interest. */
static int entered(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	return !task || strcmp(current->comm, task) || !xchg(&armed, false);
}

static int returned(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	u64 end = ktime_get_mono_fast_ns() + milliseconds * NSEC_PER_MSEC;

	/* On the console, however quiet: programs may have to wait as well. */
	pr_emerg("crng_delay: held\n");
	while (ktime_get_mono_fast_ns() < end)
		cpu_relax();
	pr_emerg("crng_delay: gone on\n");
	return 0;
}

static struct kretprobe probe = {
	.entry_handler = entered,
	.handler = returned,
	.maxactive = 8,
};

static int __init crng_delay_init(void)
{
	probe.kp.symbol_name = symbol;
	return register_kretprobe(&probe);
}

static void __exit crng_delay_exit(void)
{
	unregister_kretprobe(&probe);
}

module_init(crng_delay_init);
module_exit(crng_delay_exit);

MODULE_AUTHOR("The vmgenie developers");
MODULE_DESCRIPTION("Holds a task that has extracted a key of the crng");
MODULE_LICENSE("GPL");
