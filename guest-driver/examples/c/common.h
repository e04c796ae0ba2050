/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the five examples share: opening the device, acknowledging, and a
 * secret that has to be another one in every generation.
 */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <unistd.h>

#include <linux/sysgenid.h>

#define DEVICE "/dev/sysgenid"

__attribute__((noreturn)) static inline void die(const char *what)
{
	perror(what);
	exit(EXIT_FAILURE);
}

/* The requests of the numbering that a device has. */
struct numbering {
	unsigned int wait_watchers;
	unsigned int trigger;
	unsigned int set_tracking;
	/* Whether a file that is opened for writing is tracked at once. */
	int tracked_from_open;
};

/* A write of one byte is refused by both numberings, by each in its way. */
static inline struct numbering numbering_of(int fd)
{
	static const struct numbering seed = {
		SYSGENID_WAIT_WATCHERS, SYSGENID_TRIGGER_GEN_UPDATE,
		SYSGENID_SET_WATCHER_TRACKING, 1
	};
	static const struct numbering deployed = {
		SYSGENID_V8_WAIT_WATCHERS, SYSGENID_V8_TRIGGER_GEN_UPDATE,
		SYSGENID_V8_SET_WATCHER_TRACKING, 0
	};

	if (write(fd, "", 1) < 0 && errno == EINVAL)
		return seed;
	if (errno == ENOBUFS)
		return deployed;
	die("asking " DEVICE " for its numbering");
}

/*
 * A watcher that others wait for. The generation that is current now counts as
 * acknowledged: state that depends on it is made after this call, not before.
 */
static inline int open_watcher(int flags)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC | flags);
	struct numbering numbering;

	if (fd < 0)
		die("opening " DEVICE);
	numbering = numbering_of(fd);
	if (!numbering.tracked_from_open &&
	    ioctl(fd, numbering.set_tracking, 1UL) < 0)
		die("asking to be tracked");
	return fd;
}

/*
 * Returns 1, or 0 when another generation has begun meanwhile. Then the watcher
 * is still outdated, and its next read tells of it.
 */
static inline int acknowledge(int fd, uint32_t generation)
{
	if (write(fd, &generation, sizeof(generation)) ==
	    (ssize_t)sizeof(generation))
		return 1;
	if (errno != EINVAL)
		die("acknowledging");
	return 0;
}

struct secret {
	unsigned char bytes[16];
};

/*
 * The driver tells of a generation after the kernel's random number generator
 * has been reseeded, so what is drawn then differs between clones.
 */
static inline struct secret make_secret(void)
{
	struct secret secret;

	/* Up to 256 bytes are never drawn in part, nor interrupted. */
	if (getrandom(secret.bytes, sizeof(secret.bytes), 0) !=
	    (ssize_t)sizeof(secret.bytes))
		die("drawing random bytes");
	return secret;
}

static inline void show(const char *what, const struct secret *secret)
{
	printf("%s: ", what);
	for (size_t i = 0; i < sizeof(secret->bytes); i++)
		printf("%02x", secret->bytes[i]);
	putchar('\n');
	fflush(stdout);
}

/* The first argument as a number; `otherwise` without one. */
static inline unsigned long argument(int argc, char **argv,
				     unsigned long otherwise)
{
	unsigned long value;
	char *end;

	if (argc < 2)
		return otherwise;
	errno = 0;
	value = strtoul(argv[1], &end, 10);
	if (errno || *end || end == argv[1]) {
		fprintf(stderr, "%s: not a number: %s\n", argv[0], argv[1]);
		exit(2);
	}
	return value;
}

#endif /* COMMON_H */
