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

#define SYSGENID_IOCTL			0xE4

/*
 * Every argument is passed by value.
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
 * SYSGENID_READY: an agent says that all has been done that the generation
 * with this counter asks for. Once for each open file and generation counts;
 * a hypervisor that expects agents is told. EINVAL: it is not the present
 * generation, so adapt again. EACCES: as for SYSGENID_FORCE_GEN_UPDATE. Both
 * numberings have it.
 */
#define SYSGENID_READY			_IO(SYSGENID_IOCTL, 10)

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
