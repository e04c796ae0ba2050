// SPDX-License-Identifier: Apache-2.0
/*
 * Workflow 4: who decides that a machine may work again.
 *
 *	orchestrator [GENERATIONS]	ends after so many (default: never)
 *	orchestrator trigger		begins a generation first, then handles it
 *
 * In every new generation it holds the service back, acknowledges for itself,
 * waits for all other tracked watchers and lets the service go on. Status 3: a
 * watcher had not adapted after five seconds; the service stays held back.
 *
 * What it closes: a generation that begins during the wait ends the wait
 * (EINTR), so success means that everyone who is tracked has adapted to the
 * generation that this program has acknowledged.
 *
 * What it does not close: between the resume and pause_service() the service
 * works with its old state. Safe is only what was at rest before the snapshot
 * already: quiesce, snapshot, restore, adapt, un-quiesce. Programs that are not
 * tracked are not waited for.
 */
#include <time.h>

#include "common.h"

#define LIMIT_MS 5000

static void pause_service(void)
{
	puts("service held back");
}

static void resume_service(uint32_t generation)
{
	printf("generation %u: everyone has adapted, service resumed\n",
	       generation);
	fflush(stdout);
}

static long now_ms(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
		die("reading the clock");
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Sleeps until this watcher is outdated, and acknowledges. */
static uint32_t next_generation(int fd)
{
	uint32_t generation;

	for (;;) {
		if (read(fd, &generation, sizeof(generation)) < 0) {
			if (errno != EINTR)
				die("reading " DEVICE);
			continue;
		}
		if (acknowledge(fd, generation))
			return generation;
	}
}

/* Returns 1 when everyone has adapted, 0 when the time is over. */
static int wait_for_others(int fd, uint32_t *generation)
{
	const unsigned int request = numbering_of(fd).wait_watchers;
	const long end = now_ms() + LIMIT_MS;

	for (;;) {
		long left = end - now_ms();
		uint32_t new;

		/* 0 would be no limit. */
		if (left <= 0)
			return 0;
		if (ioctl(fd, request, (unsigned long)left) == 0)
			return 1;
		if (errno == ETIME)
			return 0;
		if (errno != EINTR)
			die("waiting for the watchers");
		/*
		 * A signal, or a generation. The second leaves the file readable
		 * and this program outdated. It has nothing of its own to adapt.
		 */
		fcntl(fd, F_SETFL, O_NONBLOCK);
		if (read(fd, &new, sizeof(new)) > 0 && acknowledge(fd, new))
			*generation = new;
		fcntl(fd, F_SETFL, 0);
	}
}

int main(int argc, char **argv)
{
	const int triggers = argc > 1 && !strcmp(argv[1], "trigger");
	const unsigned long last = triggers ? 1 : argument(argc, argv, 0);
	int fd = open_watcher(0);

	if (triggers && ioctl(fd, numbering_of(fd).trigger, 0UL) < 0)
		die("beginning a generation");
	for (unsigned long done = 0; !last || done < last; done++) {
		uint32_t generation = next_generation(fd);

		pause_service();
		if (!wait_for_others(fd, &generation)) {
			fprintf(stderr, "somebody has not adapted after %d ms\n",
				LIMIT_MS);
			return 3;
		}
		resume_service(generation);
	}
	return EXIT_SUCCESS;
}
