// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: holds one task, once, at the place where it has extracted a key
 * from the input pool and not gone on yet, as a preemption there would.
 *
 * insmod crng_delay.ko symbol=extract_entropy.constprop.0 task=NAME
 */

#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/string.h>

static char *symbol;
module_param(symbol, charp, 0444);
MODULE_PARM_DESC(symbol, "The function that extracts, as kallsyms has it");

static char *task;
module_param(task, charp, 0444);
MODULE_PARM_DESC(task, "The name of the task that is held");

static unsigned int milliseconds = 10000;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "For how long, less than the lockup watchdogs take");

/* 0: not yet, 1: it is held, 2: it has gone on. */
static int state;
module_param(state, int, 0444);

static bool armed = true;

/* Not 0: the return is of no interest. */
static int entered(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	return !task || strcmp(current->comm, task) || !xchg(&armed, false);
}

static int returned(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	unsigned int i;

	WRITE_ONCE(state, 1);
	/* On the console, however quiet: programs may have to wait as well. */
	pr_emerg("crng_delay: held\n");
	/* In small steps, because a restore may move the clock. */
	for (i = 0; i < milliseconds; i++)
		mdelay(1);
	WRITE_ONCE(state, 2);
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
