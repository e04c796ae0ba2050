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
 * enum sysgenid_event - why a backend's report() is called
 * @SYSGENID_NUMBERS: one of the numbers is another
 * @SYSGENID_BEGAN: a generation has begun
 * @SYSGENID_REGISTERED: the backend has been registered
 */
enum sysgenid_event {
	SYSGENID_NUMBERS,
	SYSGENID_BEGAN,
	SYSGENID_REGISTERED,
};

/**
 * struct sysgenid_report - what a hypervisor may want to know
 * @counter: as the watchers were told
 * @outdated: tracked watchers that are outdated
 * @required: privileged ones of them, and those that went while they were
 * @ready: agents that have finished in this generation
 * @event: an enum sysgenid_event
 */
struct sysgenid_report {
	u32 counter;
	u32 outdated;
	u32 required;
	u32 ready;
	u32 event;
};

/**
 * struct sysgenid_backend - what knows of the hypervisor's generations
 * @owner: the module; held while one of the functions runs that may sleep,
 *	and while a program has @word's page mapped
 * @context: given to the functions
 * @word: the counter, if the hypervisor keeps it, at the start of a page
 * @pfn: the frame of that page
 * @settle: look for a new generation and deal with it, before a call to
 *	/dev/sysgenid is answered; process context, may sleep
 * @finish: wait until what follows @settle has been done, before an agent's
 *	word that it is ready is taken; 0, or -EAGAIN if it takes too long;
 *	process context, may sleep
 * @report: something is to be told to the hypervisor; called with a mutex
 *	held, must not call back
 * @limit: milliseconds that are left for the hypervisor's request
 * @fork_point: have all CPUs stand still for the request @ticket, for at most
 *	@limit ms (0: as long as usual), after what @done says
 *	(SYSGENID_FORK_QUIESCED and so on); who goes on
 *	(SYSGENID_FORK_ORIGINAL, SYSGENID_FORK_CLONE) or an error number;
 *	process context, may sleep
 * @refuse: refuse the request @ticket, for one of SYSGENID_REFUSED_*; must not
 *	call back
 * @identity: the machine is another one to its neighbours, in the generation
 *	with this counter; called with a mutex held, must not call back
 * @ask: ask for a snapshot of the machine by @tag, and wait for the request
 *	that answers it, for at most @limit ms (0: as long as usual); 0 and its
 *	@ticket, or an error number; process context, may sleep
 */
struct sysgenid_backend {
	struct module *owner;
	void *context;
	u32 *word;
	unsigned long pfn;
	void (*settle)(void *context);
	int (*finish)(void *context);
	void (*report)(void *context, const struct sysgenid_report *report);
	u32 (*limit)(void *context);
	int (*fork_point)(void *context, u32 ticket, u32 limit, u32 done);
	void (*refuse)(void *context, u32 ticket, u32 reason);
	void (*identity)(void *context, u32 counter);
	int (*ask)(void *context, u32 tag, u32 limit, u32 *ticket);
};

/*
 * Begins a generation: adds one to the counter, which wraps, and tells the
 * watchers. The caller has had the kernel's random number generator reseeded.
 * Process context, may sleep.
 */
void sysgenid_bump_generation(void);

/*
 * The same, with the counter set to @min_gen or, where that would not move it
 * forwards, to the present one plus one.
 */
void sysgenid_bump_generation_to(u32 min_gen);

/*
 * A backend has had the kernel's random number generator reseeded before it
 * registers. @seen is its counter from before that: where it has moved since,
 * the answer is -EAGAIN, and the backend reseeds again. -EBUSY: there is one
 * already. -ENODEV: sysgenid has not been initialised.
 */
int sysgenid_register_backend(const struct sysgenid_backend *backend, u32 seen);
void sysgenid_unregister_backend(const struct sysgenid_backend *backend);

/* The counter as it is now, and as the watchers were told. */
u32 sysgenid_counter(void);
u32 sysgenid_told(void);

/*
 * Begins a generation if the counter still is @seen: adds one and tells the
 * watchers. Returns whether it was.
 */
bool sysgenid_begin_generation(u32 seen);

/*
 * The hypervisor asks for a fork point; 0: it does not any more. Returns
 * whether an agent has the request. If not, the backend deals with it.
 */
bool sysgenid_ask(u32 ticket);

/* That request is over. */
void sysgenid_over(u32 ticket);

/* What a backend has while nobody else can look at sysgenid or change it. */
struct sysgenid_held;

/*
 * Calls @hold with sysgenid's state locked, in the caller's context, so that
 * it may have the machine stand still: a lock that another one holds cannot be
 * taken then. What it has begun is told when it returns. False: @backend is
 * not registered, and nothing was called.
 */
bool sysgenid_hold(const struct sysgenid_backend *backend,
		   void (*hold)(void *context, struct sysgenid_held *held),
		   void *context);

/* As sysgenid_told() and sysgenid_begin_generation(). They do not sleep. */
u32 sysgenid_held_told(const struct sysgenid_held *held);
bool sysgenid_held_begin(struct sysgenid_held *held, u32 seen);

/*
 * Calls @still on one CPU while all others stand still in the kernel, all with
 * interrupts off, and returns what it has. Where it waits, it calls
 * sysgenid_relax() in each turn, for the sake of the watchdogs.
 */
int sysgenid_stop_machine(int (*still)(void *data), void *data);
void sysgenid_relax(void);

#endif /* _LINUX_SYSGENID_H */
