/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * System generation ID: a counter that moves whenever this machine's life
 * stops being unique, because it was cloned or restored from a snapshot.
 *
 * The interface of /dev/sysgenid. Documentation/misc-devices/sysgenid.rst is
 * its manual.
 */
#ifndef _UAPI_LINUX_SYSGENID_H
#define _UAPI_LINUX_SYSGENID_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define SYSGENID_IOCTL			0xE4

/*
 * Arguments are passed by value, except where a struct is named.
 *
 * SYSGENID_WAIT_WATCHERS: blocks until no watcher is outdated, for at most
 * this many milliseconds; 0 waits without limit. ETIME: the time is over.
 * EINTR: the caller is outdated itself, or a signal came. A wait without limit
 * that a signal only stops and continues goes on; one with a limit ends with
 * EINTR, and is made again with what is left.
 */
#define SYSGENID_WAIT_WATCHERS		_IO(SYSGENID_IOCTL, 1)

/*
 * SYSGENID_FORCE_GEN_UPDATE: sets the counter to this value (u32) or, where
 * that would not move it forwards, to the present one plus one. Needs
 * CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial user namespace, or
 * else EACCES. EOVERFLOW: the counter is at its end; EINVAL: not a u32.
 */
#define SYSGENID_FORCE_GEN_UPDATE	_IO(SYSGENID_IOCTL, 2)

/* The same under the name and number that deployed programs know. */
#define SYSGENID_TRIGGER_GEN_UPDATE	_IO(SYSGENID_IOCTL, 3)

/*
 * SYSGENID_SET_WATCHER_TRACKING: whether SYSGENID_WAIT_WATCHERS waits for
 * this open file, 1 or 0. A file opened for writing is tracked from open().
 * A file opened read-only cannot acknowledge, so it is not, and cannot be
 * made to be (EBADF): its reads and polls tell it of a new generation alone.
 */
#define SYSGENID_SET_WATCHER_TRACKING	_IO(SYSGENID_IOCTL, 4)

/*
 * The fork point: a hypervisor wants to take a snapshot of the running
 * machine, and asks. Programs that take part let go of what must be unique,
 * an agent runs what has to be run before, and the driver has all CPUs stand
 * still in the kernel while the snapshot is taken. In a clone no user
 * instruction runs before the kernel's random number generator was reseeded
 * and the counter moved. The original goes on as it was.
 *
 * Both numberings have these. The mapped page has the counter at offset 0 and,
 * at SYSGENID_PENDING_OFFSET, a u32 that is not 0 from the request to its end:
 * a hint, by which a program does not begin then what must be unique.
 *
 * SYSGENID_SET_ROLE: what this open file is in it, one of SYSGENID_ROLE_*. An
 * agent is told of requests; there is one at a time (EBUSY), and it needs a
 * capability as for SYSGENID_FORCE_GEN_UPDATE (EACCES). If its file is closed
 * while it has a request, that is refused. A participant is waited for, and
 * poll() says POLLPRI to it from a request on until it has parked. Anybody may
 * be one; it is *required* if its process had such a capability when it took
 * the role. EINVAL: no such role.
 */
#define SYSGENID_SET_ROLE		_IO(SYSGENID_IOCTL, 5)

#define SYSGENID_ROLE_NONE		0
#define SYSGENID_ROLE_PARTICIPANT	1
#define SYSGENID_ROLE_AGENT		2

/**
 * struct sysgenid_request - what the hypervisor asks for
 * @ticket: names the request; 0: there is none, or it was withdrawn
 * @limit_ms: milliseconds that are left for it
 * @flags: 0
 * @reserved: 0
 */
struct sysgenid_request {
	__u32 ticket;
	__u32 limit_ms;
	__u32 flags;
	__u32 reserved;
};

/*
 * SYSGENID_GET_REQUEST: the present request, at once. poll() says POLLPRI
 * while there is another one than was last given to this file, also when it
 * was withdrawn. EPERM: the file is no agent's.
 */
#define SYSGENID_GET_REQUEST \
	_IOR(SYSGENID_IOCTL, 6, struct sysgenid_request)

/*
 * SYSGENID_PARK: a participant says that nothing unique is in flight, and
 * sleeps until the request is over. 0: go on as before, in the original, or
 * because there is no request, or nothing came of it. 1: this is a clone, so
 * read, renew and write as ever. EINTR: a signal came, and the file is not
 * parked any more. One that is frozen with its control group is parked until
 * it is thawed, and then again when the call goes on; if a signal's handler
 * runs instead, it is asked again. EPERM: the file is no participant's.
 */
#define SYSGENID_PARK			_IO(SYSGENID_IOCTL, 7)

/*
 * SYSGENID_WAIT_PARKED: an agent waits until all participants are parked, for
 * at most this many milliseconds; 0 looks once. 0: all are. 1: the time is
 * over, and all are that are required; others are not, so SYSGENID_FORK_PARKED
 * would not be true. ETIME: some that are required are not. ESTALE: there is
 * no request. EPERM: the file is no agent's. EINTR: a signal came.
 */
#define SYSGENID_WAIT_PARKED		_IO(SYSGENID_IOCTL, 8)

/* What has been done before the fork point. */
#define SYSGENID_FORK_QUIESCED		0x001	/* hooks have run */
#define SYSGENID_FORK_FROZEN		0x002	/* programs are frozen */
#define SYSGENID_FORK_PARKED		0x004	/* all participants are parked */
/* The caller asks for a snapshot of this machine; see below. */
#define SYSGENID_FORK_SELF		0x100

/* Who goes on after it. 0 is neither, so that nobody takes it for fork()'s. */
#define SYSGENID_FORK_ORIGINAL		1
#define SYSGENID_FORK_CLONE		2

/**
 * struct sysgenid_fork_point - all CPUs stand still for a snapshot
 * @size: of this struct, 32. A larger one would have another number
 * @flags: SYSGENID_FORK_QUIESCED and so on
 * @ticket: of the request; with SYSGENID_FORK_SELF a tag, which is not 0
 * @timeout_ms: how long the CPUs may stand still; 0: 2 s. At most 10 s. With
 *	SYSGENID_FORK_SELF the hypervisor may take as long before that
 * @result: given back: SYSGENID_FORK_ORIGINAL or SYSGENID_FORK_CLONE
 * @counter: given back: that of the generation that goes on
 * @realtime: given back: CLOCK_REALTIME in nanoseconds, after it was set
 */
struct sysgenid_fork_point {
	__u32 size;
	__u32 flags;
	__u32 ticket;
	__u32 timeout_ms;
	__u32 result;
	__u32 counter;
	__u64 realtime;
};

/*
 * SYSGENID_FORK_POINT: *every* thread of the machine is cloned with the
 * caller; this is no fork() of a process. Returns 0 in the original and in
 * each clone, and says which it is in @result. EACCES: no capability as for
 * SYSGENID_FORCE_GEN_UPDATE, or the file is no agent's. EOPNOTSUPP: the kernel
 * (PREEMPT_RT) or the hypervisor cannot. EBUSY: another is under way, or
 * SYSGENID_FORK_PARKED is not true: wait for participants again. EAGAIN: the
 * kernel's random number generator is not ready, or cannot be reseeded.
 * ESTALE: it is not the present ticket. ECANCELED: the hypervisor has given
 * up. ETIME: it has not answered in time. EINVAL: flags or a size that are not
 * known. EFAULT: the struct cannot be read, or not be written to, which is
 * tried before. Whatever the error: nothing was taken.
 *
 * With SYSGENID_FORK_SELF, too, *every* thread of the machine is cloned; this
 * is no fork() of a process. The caller needs the capability and no role. It
 * asks the hypervisor for a snapshot, which says where it goes and how many
 * there may be, and takes the request that answers it in the agent's place: an
 * agent is not told, and nothing is quiesced or frozen that the caller has not.
 * Participants see the request; the caller does not wait for them. The tag is
 * for those who read the hypervisor's log. EOPNOTSUPP: the hypervisor lets
 * nobody ask. EPERM: it does not want this one. ETIME: it has not said so in
 * time. EBUSY: there is another request, or another program asks. EINTR: a
 * signal came before the CPUs stood still. EINVAL: a tag of 0, or
 * SYSGENID_FORK_PARKED, too.
 */
#define SYSGENID_FORK_POINT \
	_IOWR(SYSGENID_IOCTL, 9, struct sysgenid_fork_point)

/*
 * SYSGENID_READY: an agent says that all has been done that the generation
 * with this counter asks for. Once for each open file and generation counts;
 * a hypervisor that expects agents is told. EINVAL: it is not the present
 * generation, so adapt again. EACCES: as for SYSGENID_FORCE_GEN_UPDATE. EAGAIN:
 * the second reseeding is not over after 10 s, so say it again; a task that
 * does not get to run delays that. Both numberings have it.
 */
#define SYSGENID_READY			_IO(SYSGENID_IOCTL, 10)

/*
 * SYSGENID_IDENTITY: an agent says that the machine is another one to its
 * neighbours in the generation with this counter: names, addresses and keys
 * have been renewed. A hypervisor may connect its network then. EINVAL: it is
 * not the present generation. EACCES: as for SYSGENID_FORCE_GEN_UPDATE. EPERM:
 * the file is no agent's. EAGAIN: as for SYSGENID_READY. Both numberings have
 * it.
 */
#define SYSGENID_IDENTITY		_IO(SYSGENID_IOCTL, 11)

/* Why a request is refused. */
#define SYSGENID_REFUSED_HOOK_FAILED	1
#define SYSGENID_REFUSED_HOOK_HUNG	2
#define SYSGENID_REFUSED_NOT_FROZEN	3
#define SYSGENID_REFUSED_RNG_NOT_READY	4	/* the driver's own */
#define SYSGENID_REFUSED_NOT_SUPPORTED	5	/* the driver's own */
#define SYSGENID_REFUSED_BUSY		6
#define SYSGENID_REFUSED_AGENT_GONE	7
#define SYSGENID_REFUSED_NOT_PARKED	8
#define SYSGENID_REFUSED_NOT_RESEEDED	9	/* the driver's own */
#define SYSGENID_REFUSED_OTHER		10

/**
 * struct sysgenid_refusal - an agent's refusal
 * @ticket: of the request
 * @reason: one of SYSGENID_REFUSED_*
 */
struct sysgenid_refusal {
	__u32 ticket;
	__u32 reason;
};

/*
 * SYSGENID_REFUSE: an agent refuses the request; it is over. ESTALE: it is not
 * the present ticket. EINVAL: no such reason. EPERM: the file is no agent's.
 */
#define SYSGENID_REFUSE \
	_IOW(SYSGENID_IOCTL, 12, struct sysgenid_refusal)

/* Where the mapped page has its u32 "pending". */
#define SYSGENID_PENDING_OFFSET		4

/*
 * The numbering of versions 6 to 8 of the original patches, which deployed
 * programs use; the module serves it, and the errno values that belong to it,
 * with abi=8. There no file is tracked until it asks to be. A program tells
 * the two apart by writing one byte: EINVAL from the numbers above, ENOBUFS
 * from these.
 */
#define SYSGENID_V8_SET_WATCHER_TRACKING	_IO(SYSGENID_IOCTL, 1)
#define SYSGENID_V8_WAIT_WATCHERS		_IO(SYSGENID_IOCTL, 2)
#define SYSGENID_V8_TRIGGER_GEN_UPDATE		_IO(SYSGENID_IOCTL, 3)

#endif /* _UAPI_LINUX_SYSGENID_H */
