// SPDX-License-Identifier: GPL-2.0
/*
 * For tests: takes something away from the driver's fork point, or makes it
 * slow, so that a test can show what that would do.
 *
 * insmod fork_faults.ko [stop=0] [reseed=0] [seed=0] [wait=0] [late=1]
 *	[milliseconds=50] [hold=1] [fails=ready|reseed|stop]
 *
 * The driver's modules have to be there.
 */

#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

static bool stop = true;
module_param(stop, bool, 0444);
MODULE_PARM_DESC(stop, "Whether the other CPUs stand still");

static bool reseed = true;
module_param(reseed, bool, 0444);
MODULE_PARM_DESC(reseed, "Whether the generator is reseeded by ioctl()");

static bool seed = true;
module_param(seed, bool, 0444);
MODULE_PARM_DESC(seed, "Whether 32 bytes at a time are mixed in");

static unsigned int milliseconds;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "How long it waits when it has been answered");

static bool wait = true;
module_param(wait, bool, 0444);
MODULE_PARM_DESC(wait, "Whether the second reseeding waits for tasks in one");

static bool late;
module_param(late, bool, 0444);
MODULE_PARM_DESC(late, "Whether it looks at the clock once, when time is over");

static bool hold;
module_param(hold, bool, 0644);
MODULE_PARM_DESC(hold, "Whether it does not stop yet; it looks again and again");

static char *fails;
module_param(fails, charp, 0444);
MODULE_PARM_DESC(fails, "What fails: ready, reseed or stop");

#define RESEED 0x5207
#define SEED_LENGTH 32

/* Longer than the driver waits for the hypervisor. */
#define LATE_MS 2500

/* What is called instead. */
static noinline int without_stop(int (*still)(void *data), void *data)
{
	return still(data);
}

static noinline int stop_later(int (*still)(void *data), void *data)
{
	while (READ_ONCE(hold))
		msleep(20);
	return stop_machine(still, data, NULL);
}

static noinline long nothing(void)
{
	return 0;
}

static noinline long refused(void)
{
	return -EPERM;
}

static bool is_to_fail(const char *what)
{
	return fails && !strcmp(fails, what);
}

static void spin(unsigned int ms)
{
	u64 end = ktime_get_mono_fast_ns() + ms * NSEC_PER_MSEC;

	while (ktime_get_mono_fast_ns() < end)
		cpu_relax();
}

static int instead(struct pt_regs *regs, void *function)
{
	instruction_pointer_set(regs, (unsigned long)function);
	return 1;
}

static int on_stop(struct kprobe *probe, struct pt_regs *regs)
{
	if (is_to_fail("stop"))
		return instead(regs, refused);
	return instead(regs, stop ? stop_later : without_stop);
}

static int on_ioctl(struct kprobe *probe, struct pt_regs *regs)
{
	if (regs->si != RESEED)
		return 0;
	return instead(regs, reseed ? refused : nothing);
}

static int on_mix(struct kprobe *probe, struct pt_regs *regs)
{
	return regs->si == SEED_LENGTH ? instead(regs, nothing) : 0;
}

static int on_nothing(struct kprobe *probe, struct pt_regs *regs)
{
	return instead(regs, nothing);
}

static int on_look(struct kprobe *probe, struct pt_regs *regs)
{
	spin(LATE_MS);
	return 0;
}

static int on_answer(struct kprobe *probe, struct pt_regs *regs)
{
	spin(milliseconds);
	return 0;
}

/* With one, a probe is never a jump, which could not go elsewhere. */
static void after(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

#define PROBE(symbol, handler) \
	{ .symbol_name = symbol, .pre_handler = handler, .post_handler = after }

static struct kprobe no_stop = PROBE("sysgenid_stop_machine", on_stop);
static struct kprobe no_reseed = PROBE("random_ioctl", on_ioctl);
static struct kprobe no_seed = PROBE("add_device_randomness", on_mix);
static struct kprobe slow = PROBE("sysgenid_held_told", on_answer);

static struct kprobe no_wait = PROBE("synchronize_rcu_tasks", on_nothing);
static struct kprobe not_ready = PROBE("rng_is_initialized", on_nothing);
static struct kprobe too_late = PROBE("sysgenid_relax", on_look);

static struct kprobe *probes[7];
static int count;

static int __init fork_faults_init(void)
{
	if (!stop || hold || is_to_fail("stop"))
		probes[count++] = &no_stop;
	if (!reseed || is_to_fail("reseed"))
		probes[count++] = &no_reseed;
	if (!seed)
		probes[count++] = &no_seed;
	if (milliseconds)
		probes[count++] = &slow;
	if (!wait)
		probes[count++] = &no_wait;
	if (late)
		probes[count++] = &too_late;
	if (is_to_fail("ready"))
		probes[count++] = &not_ready;
	return register_kprobes(probes, count);
}

static void __exit fork_faults_exit(void)
{
	unregister_kprobes(probes, count);
}

module_init(fork_faults_init);
module_exit(fork_faults_exit);

MODULE_AUTHOR("The vmgenie developers");
MODULE_DESCRIPTION("Takes something away from the driver's fork point");
MODULE_LICENSE("GPL");
