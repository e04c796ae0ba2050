// SPDX-License-Identifier: Apache-2.0
/*
 * Workflow 3: a library that compares a word of mapped memory at every use.
 *
 *	mapped [CHANGES]	ends after so many (default: never)
 *
 * What it closes: a load costs no system call. On vmgenie the monitor moves the
 * page while no CPU of the machine runs, so the first load after a restore
 * tells. The counter moves once more when the kernel's random number generator
 * has been reseeded: the secret that was made too early is made again.
 *
 * What it does not close: on other hypervisors the page moves when the driver
 * has been notified; until then the old value is loaded. Nowhere does it help
 * against a restore after the last load, when the secret is already in use.
 *
 * The file is opened read-only and closed again: no watcher is left, and nobody
 * waits for this library. One that wants to be waited for opens it for writing,
 * keeps it open and acknowledges, as the other examples do.
 */
#include <sys/mman.h>
#include <time.h>

#include "common.h"

struct library {
	const uint32_t *counter;
	/* The counter before the secret was made. */
	uint32_t generation;
	struct secret secret;
	unsigned long changes;
};

static uint32_t load(const struct library *library)
{
	return __atomic_load_n(library->counter, __ATOMIC_ACQUIRE);
}

static void map(struct library *library)
{
	int fd = open(DEVICE, O_RDONLY | O_CLOEXEC);
	void *page;

	if (fd < 0)
		die("opening " DEVICE);
	page = mmap(NULL, sizeof(uint32_t), PROT_READ, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		die("mapping " DEVICE);
	close(fd);
	library->counter = page;
	library->generation = load(library);
	library->secret = make_secret();
}

/* The secret of the generation that was current at the last load. */
static const struct secret *get_secret(struct library *library)
{
	uint32_t now;

	while ((now = load(library)) != library->generation) {
		library->secret = make_secret();
		/* What was loaded before it was made; the loop looks again. */
		library->generation = now;
		library->changes++;
	}
	return &library->secret;
}

int main(int argc, char **argv)
{
	const unsigned long last = argument(argc, argv, 0);
	const struct timespec pause = { .tv_nsec = 1000 * 1000 };
	struct library library = { 0 };
	unsigned long seen = 0;

	map(&library);
	show("secret", get_secret(&library));
	while (!last || seen < last) {
		const struct secret *secret = get_secret(&library);

		if (library.changes != seen) {
			seen = library.changes;
			printf("generation %u: renewed\n", library.generation);
			show("secret", secret);
		}
		nanosleep(&pause, NULL);
	}
	return EXIT_SUCCESS;
}
