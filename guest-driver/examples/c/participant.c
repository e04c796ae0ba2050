// SPDX-License-Identifier: Apache-2.0
/*
 * Workflow 5: a program that has nothing in flight when the host snapshots the
 * running machine.
 *
 *	participant [SNAPSHOTS]	ends after so many that it was parked for
 *				(default: never)
 *
 * It works in small pieces, each of which would do harm if two clones did it.
 * Before the next piece it looks whether it is asked to park.
 *
 * What it closes: the machine is cloned while this program is parked, with no
 * piece begun and not ended. So no two clones do the same piece, and each
 * renews its secret before the next.
 *
 * What it does not close: a snapshot that the host takes without asking. Then
 * it is as workflow 2: a piece that is under way is done by every clone.
 */
#include <poll.h>

#include "common.h"

#define PIECE_MS 50

/* Renews the secret if another generation has begun. */
static void renew(int fd)
{
	uint32_t generation;

	while (read(fd, &generation, sizeof(generation)) > 0) {
		struct secret secret = make_secret();

		if (acknowledge(fd, generation)) {
			printf("generation %u: renewed\n", generation);
			show("secret", &secret);
		}
	}
	if (errno != EAGAIN && errno != EINTR)
		die("reading " DEVICE);
}

/* Whether the host has asked, after one piece of work. */
static int asked(int fd)
{
	struct pollfd file = { .fd = fd, .events = POLLPRI };

	/* The piece, of which this stands for the time in between. */
	if (poll(&file, 1, PIECE_MS) < 0 && errno != EINTR)
		die("polling " DEVICE);
	return file.revents & POLLPRI;
}

int main(int argc, char **argv)
{
	const unsigned long last = argument(argc, argv, 0);
	/* First the watcher, then the state, or a generation in between is lost. */
	const int fd = open_watcher(O_NONBLOCK);
	struct secret secret = make_secret();
	unsigned long parked = 0;

	if (ioctl(fd, SYSGENID_SET_ROLE, (unsigned long)SYSGENID_ROLE_PARTICIPANT) < 0)
		die("asking to be waited for");
	show("secret", &secret);
	while (!last || parked < last) {
		if (asked(fd)) {
			int clone = ioctl(fd, SYSGENID_PARK, 0UL);

			if (clone >= 0) {
				puts(clone ? "parked: a clone" : "parked: goes on");
				fflush(stdout);
				parked++;
			} else if (errno != EINTR) {
				die("parking");
			}
		}
		renew(fd);
	}
	return EXIT_SUCCESS;
}
