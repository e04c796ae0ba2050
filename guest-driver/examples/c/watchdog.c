// SPDX-License-Identifier: Apache-2.0
/*
 * Workflow 1: a thread that sleeps in read() and renews the process's state in
 * every new generation.
 *
 *	watchdog [GENERATIONS]	ends after so many (default: never)
 *
 * What it closes: no generation is missed. The driver compares with what this
 * file has acknowledged, so one that begins before read() is told by it, and
 * one that begins while the state is renewed makes the acknowledgement fail.
 *
 * What it does not close: until this thread has run, the others go on with the
 * old state. The lock keeps them from a half-renewed one, from nothing else.
 * Only a machine whose other threads are at rest during the snapshot is safe.
 */
#include <pthread.h>

#include "common.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t renewed = PTHREAD_COND_INITIALIZER;
static struct secret secret;
static unsigned long generations;

static void renew(void)
{
	pthread_mutex_lock(&lock);
	secret = make_secret();
	pthread_mutex_unlock(&lock);
}

static void count(void)
{
	pthread_mutex_lock(&lock);
	generations++;
	pthread_cond_signal(&renewed);
	pthread_mutex_unlock(&lock);
}

/*
 * close() in another thread does not wake a read(). A thread that has to be
 * stopped sleeps in poll(), with an eventfd beside the device.
 */
static void *watch(void *argument)
{
	const int fd = *(int *)argument;
	uint32_t generation;

	for (;;) {
		if (read(fd, &generation, sizeof(generation)) < 0) {
			if (errno == EINTR)
				continue;
			die("reading " DEVICE);
		}
		renew();
		if (acknowledge(fd, generation)) {
			printf("generation %u: renewed\n", generation);
			count();
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const unsigned long last = argument(argc, argv, 0);
	unsigned long seen = 0;
	pthread_t thread;
	int fd;

	/* First the watcher, then the state, or a generation in between is lost. */
	fd = open_watcher(0);
	secret = make_secret();
	show("secret", &secret);
	errno = pthread_create(&thread, NULL, watch, &fd);
	if (errno)
		die("starting the watchdog");

	pthread_mutex_lock(&lock);
	while (!last || seen < last) {
		while (seen == generations)
			pthread_cond_wait(&renewed, &lock);
		seen = generations;
		show("secret", &secret);
	}
	pthread_mutex_unlock(&lock);
	return EXIT_SUCCESS;
}
