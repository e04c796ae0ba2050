/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program in C or C++ learns that its virtual machine was cloned: one load
 * at each look, and a thread that parks when the host asks for a snapshot.
 *
 *	static uint32_t since;
 *
 *	if (sysgenid_changed(&since))
 *		reseed();
 *
 * README.md says what that makes safe and what it cannot.
 */
#ifndef SYSGENID_WATCH_H
#define SYSGENID_WATCH_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef O_CLOEXEC
#error "compile with -std=gnu11, or define _DEFAULT_SOURCE before all headers"
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SYSGENID_WATCH_DEVICE	"/dev/sysgenid"

/* From <linux/sysgenid.h>, which a system may not have. */
#define SYSGENID_WATCH_SET_ROLE		0xE405u
#define SYSGENID_WATCH_PARK		0xE407u
#define SYSGENID_WATCH_DEPLOYED_TRACK	0xE401u
#define SYSGENID_WATCH_PARTICIPANT	1ul

/* Before sysgenid_open(), and where there is no device: nothing changes. */
static const uint32_t sysgenid_nothing[2] = { 0, 0 };

/* The mapped page: one for all files of a program that include this. */
extern const uint32_t *sysgenid_page;
__attribute__((weak)) const uint32_t *sysgenid_page = sysgenid_nothing;

/*
 * Maps the counter. Returns 0, or -1 with errno; the functions below may be
 * called then all the same. Call it before there are other threads.
 *
 * The file is opened read-only and closed again: nobody waits for this program.
 */
static inline int sysgenid_open_at(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *page;
	int error;

	if (fd < 0)
		return -1;
	page = mmap(0, sizeof(sysgenid_nothing), PROT_READ, MAP_SHARED, fd, 0);
	error = errno;
	close(fd);
	errno = error;
	if (page == MAP_FAILED)
		return -1;
	sysgenid_page = (const uint32_t *)page;
	return 0;
}

static inline int sysgenid_open(void)
{
	return sysgenid_open_at(SYSGENID_WATCH_DEVICE);
}

/* The counter: one load. What this thread does later is not moved before it. */
static inline uint32_t sysgenid_generation(void)
{
	return __atomic_load_n(&sysgenid_page[0], __ATOMIC_ACQUIRE);
}

/* Whether the host has asked for a snapshot, and it is not over: a hint. */
static inline int sysgenid_pending(void)
{
	return __atomic_load_n(&sysgenid_page[1], __ATOMIC_ACQUIRE) != 0;
}

/*
 * Whether the counter is another one than *since, which becomes the present
 * one. Each piece of state has a `since` of its own, taken from
 * sysgenid_generation() *before* that state was made.
 *
 * The machine may be cloned right after the load. What a thread does between
 * it and its next look, each clone does: at most one draw for each thread.
 */
static inline int sysgenid_changed(uint32_t *since)
{
	uint32_t now = sysgenid_generation();

	if (__builtin_expect(now == *since, 1))
		return 0;
	*since = now;
	return 1;
}

/* What a thread does that takes part. Each may be NULL, and has `data`. */
struct sysgenid_part {
	/*
	 * The host asks: have the other threads come to rest. Returns 0; else
	 * this thread does not park, and the snapshot may be refused.
	 */
	int (*before)(void *data);
	/*
	 * It is over; or `before` has failed, and it still stands. `clone` is 0
	 * in the original, also if nothing came of it, and 1 in a clone. Returns
	 * 0; else the generation is not acknowledged, and a clone is told again.
	 * An original is not.
	 */
	int (*after)(void *data, int clone, uint32_t generation);
	void *data;
};

/*
 * Opens a file that is waited for. Returns it, or -1 with errno: EINVAL or
 * ENOTTY from a driver that does not ask before snapshots.
 */
static inline int sysgenid_join_at(const char *path)
{
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	int error;

	if (fd < 0)
		return -1;
	/* Both numberings refuse one byte, each in its way. */
	if (write(fd, "", 1) >= 0)
		errno = ENODEV;
	else if (errno == EINVAL ||
		 (errno == ENOBUFS &&
		  ioctl(fd, SYSGENID_WATCH_DEPLOYED_TRACK, 1ul) == 0))
		if (ioctl(fd, SYSGENID_WATCH_SET_ROLE,
			  SYSGENID_WATCH_PARTICIPANT) == 0)
			return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

static inline int sysgenid_join(void)
{
	return sysgenid_join_at(SYSGENID_WATCH_DEVICE);
}

/*
 * Tells of the generation that this file has not acknowledged. Returns 1, 0 if
 * there is none, and -1 for a failure.
 */
static inline int sysgenid_adapt(int fd, const struct sysgenid_part *part)
{
	uint32_t generation;
	int told = 0;

	while (read(fd, &generation, sizeof(generation)) ==
	       (ssize_t)sizeof(generation)) {
		if (part->after && part->after(part->data, 1, generation))
			return -1;
		told = 1;
		/* EINVAL: another one has begun meanwhile. */
		if (write(fd, &generation, sizeof(generation)) < 0 &&
		    errno != EINVAL)
			return -1;
	}
	return told;
}

/*
 * One turn of a thread that takes part: sleeps until the host asks or a
 * generation has begun, for at most `milliseconds` (-1: without limit), and does
 * what `part` says. Returns 0, or -1 with errno. ECANCELED: `before` or `after`
 * has failed; after a pause, call it again.
 *
 * A generation that nobody has asked for is told of as well: late.
 */
static inline int sysgenid_take_part(int fd, const struct sysgenid_part *part,
				     int milliseconds)
{
	struct pollfd file = { fd, POLLPRI | POLLIN, 0 };
	int clone = 0;
	int error, rests, told;

	if (poll(&file, 1, milliseconds) < 0)
		return errno == EINTR ? 0 : -1;
	if (!(file.revents & POLLPRI)) {
		if (!(file.revents & POLLIN) || sysgenid_adapt(fd, part) >= 0)
			return 0;
		errno = ECANCELED;
		return -1;
	}
	rests = !part->before || part->before(part->data) == 0;
	while (rests) {
		clone = ioctl(fd, SYSGENID_WATCH_PARK, 0ul);
		if (clone >= 0 || errno != EINTR)
			break;
	}
	error = !rests ? ECANCELED : clone < 0 ? errno : 0;
	/*
	 * A clone that parks when the request is over hears 0, as an original
	 * does: what has happened is in the file.
	 */
	told = sysgenid_adapt(fd, part);
	if (told < 0 ||
	    (!told && part->after &&
	     part->after(part->data, clone == 1, sysgenid_generation())))
		error = ECANCELED;
	errno = error;
	return error ? -1 : 0;
}

#ifdef __cplusplus
}
#endif

#endif /* SYSGENID_WATCH_H */
