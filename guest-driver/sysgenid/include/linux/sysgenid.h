/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The system generation counter, for what drives it.
 *
 * A backend that only knows that a new generation has begun calls
 * sysgenid_bump_generation(). One that can be asked whether one has, or has
 * a page that the hypervisor keeps the counter in, registers itself.
 */
#ifndef _LINUX_SYSGENID_H
#define _LINUX_SYSGENID_H

#include <linux/types.h>

struct module;

/**
 * struct sysgenid_backend - what knows of the hypervisor's generations
 * @owner: the module; held while one of the functions runs that may sleep,
 *	and while a program has @word's page mapped
 * @context: given to the functions
 * @word: the counter, if the hypervisor keeps it, at the start of a page
 * @pfn: the frame of that page
 * @settle: look for a new generation and deal with it, before a call to
 *	/dev/sysgenid is answered; process context, may sleep
 * @report: a generation has begun (@began), or the number of outdated
 *	watchers is another; called with a mutex held, must not call back
 */
struct sysgenid_backend {
	struct module *owner;
	void *context;
	u32 *word;
	unsigned long pfn;
	void (*settle)(void *context);
	void (*report)(void *context, u32 counter, u32 outdated, bool began);
};

/*
 * Begins a generation: the counter is set to @min_gen or, where that would
 * not move it forwards, to the present one plus one, which wraps. Watchers
 * are told. The caller has had the kernel's random number generator reseeded.
 * Process context, may sleep.
 */
void sysgenid_bump_generation(u32 min_gen);

int sysgenid_register_backend(const struct sysgenid_backend *backend);
void sysgenid_unregister_backend(const struct sysgenid_backend *backend);

/* The counter as it is now, and as the watchers were told. */
u32 sysgenid_counter(void);
u32 sysgenid_told(void);

/*
 * Begins a generation if the counter still is @seen: adds one and tells the
 * watchers. Returns whether it was.
 */
bool sysgenid_begin_generation(u32 seen);

#endif /* _LINUX_SYSGENID_H */
