// SPDX-License-Identifier: Apache-2.0
/*
 * Workflow 2: an event loop that has the device among its files.
 *
 *	epoll [GENERATIONS]	ends after so many (default: never)
 *
 * What it closes: the loop asks the device before it handles any event. The
 * events of one epoll_wait() come in no useful order, and the timer's may have
 * been there when the machine was snapshotted. The driver looks at the
 * hypervisor's page in that read(), so no event of a new generation is handled
 * with the old state because an interrupt is late.
 *
 * What it does not close: a generation that begins while an event is being
 * handled is noticed at the next turn.
 */
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "common.h"

static struct secret secret;

/* Returns how many generations have been acknowledged: 0 or 1. */
static int look(int fd)
{
	uint32_t generation;

	while (read(fd, &generation, sizeof(generation)) > 0) {
		secret = make_secret();
		if (acknowledge(fd, generation)) {
			printf("generation %u: renewed\n", generation);
			show("secret", &secret);
			return 1;
		}
		/* Another one has begun: once more. */
	}
	if (errno != EAGAIN && errno != EINTR)
		die("reading " DEVICE);
	return 0;
}

static void add(int epoll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		die("adding a file to epoll");
}

/* Stands for the rest of the program: ticks twice a second. */
static int start_timer(void)
{
	const struct itimerspec pace = {
		.it_interval.tv_nsec = 500 * 1000 * 1000,
		.it_value.tv_nsec = 500 * 1000 * 1000,
	};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

	if (fd < 0 || timerfd_settime(fd, 0, &pace, NULL) < 0)
		die("starting a timer");
	return fd;
}

int main(int argc, char **argv)
{
	const unsigned long last = argument(argc, argv, 0);
	struct epoll_event events[8];
	unsigned long generations = 0;
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int timer = start_timer();
	int device;

	if (epoll < 0)
		die("making an epoll file");
	/* First the watcher, then the state. */
	device = open_watcher(O_NONBLOCK);
	secret = make_secret();
	show("secret", &secret);
	add(epoll, device);
	add(epoll, timer);

	while (!last || generations < last) {
		int ready = epoll_wait(epoll, events, 8, -1);

		if (ready < 0 && errno != EINTR)
			die("waiting for events");
		generations += look(device);
		for (int i = 0; i < ready; i++) {
			uint64_t ticks;

			/* The device had its turn. */
			if (events[i].data.fd != timer)
				continue;
			if (read(timer, &ticks, sizeof(ticks)) < 0 &&
			    errno != EAGAIN)
				die("reading the timer");
		}
	}
	return EXIT_SUCCESS;
}
