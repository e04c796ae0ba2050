// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: holds one task, once, at the place where it has extracted a key
 * from the input pool and not gone on yet, as a preemption there would. It
 * sleeps nowhere meanwhile, so that it counts as one that was preempted. With
 * interrupts off its CPU does nothing else, so that they have to go elsewhere.
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

static struct kprobe probe;

/* What is called instead. The probe lets the second call pass. */
static noinline unsigned long held(unsigned long a, unsigned long b,
				   unsigned long c, unsigned long d)
{
	unsigned long (*extract)(unsigned long a, unsigned long b,
				 unsigned long c, unsigned long d) =
		(void *)probe.addr;
	unsigned long value = extract(a, b, c, d);
	u64 end = ktime_get_mono_fast_ns() + milliseconds * NSEC_PER_MSEC;

	/* On the console, however quiet: programs may have to wait as well. */
	pr_emerg("crng_delay: held\n");
	while (ktime_get_mono_fast_ns() < end)
		cpu_relax();
	pr_emerg("crng_delay: gone on\n");
	return value;
}

static int entered(struct kprobe *unused, struct pt_regs *regs)
{
	if (!task || strcmp(current->comm, task) || !xchg(&armed, false))
		return 0;
	instruction_pointer_set(regs, (unsigned long)held);
	return 1;
}

/* With one, the probe is never a jump, which could not go elsewhere. */
static void after(struct kprobe *unused, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe probe = {
	.pre_handler = entered,
	.post_handler = after,
};

static int __init crng_delay_init(void)
{
	probe.symbol_name = symbol;
	return register_kprobe(&probe);
}

static void __exit crng_delay_exit(void)
{
	unregister_kprobe(&probe);
}

module_init(crng_delay_init);
module_exit(crng_delay_exit);

MODULE_AUTHOR("The vmgenie developers");
MODULE_DESCRIPTION("Holds a task that has extracted a key of the crng");
MODULE_LICENSE("GPL");
