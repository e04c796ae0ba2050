// SPDX-License-Identifier: Apache-2.0
/*
 * Draws random numbers all the time, and shows 1,000 of each kind when it is
 * told to.
 *
 *	draws [--cure] TRIGGER OUTPUT
 *
 * With --cure it looks at the counter at each draw, and a thread of it parks
 * with no draw under way. When the file TRIGGER exists, it writes OUTPUT, a line
 * "NAME HEX" for each number, and ends.
 *
 * In clones of one machine all of these numbers differ with --cure. Without it
 * they are those of the original, from where each clone has come to. To see
 * them equal one by one, make the file TRIGGER.hold before the snapshot: the
 * program says "held", and draws nothing until TRIGGER is there.
 *
 *	cc -O2 -std=gnu11 -Wall -Wextra -pthread -I.. -o draws draws.c
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "sysgenid_watch.h"

#define COUNT	1000
#define THREADS	2
#define KINDS	3

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *const names[KINDS] = { "random", "drand48", "own" };
static char hold[4096];
static const char *trigger;
static uint64_t own;
static uint32_t since;
static int cure;

static void die(const char *what)
{
	perror(what);
	exit(EXIT_FAILURE);
}

static void seed(void)
{
	static char state[256];
	uint64_t bits[2];
	unsigned short halves[3];

	if (getrandom(bits, sizeof(bits), 0) != (ssize_t)sizeof(bits))
		die("drawing random bytes");
	initstate((unsigned int)bits[0], state, sizeof(state));
	memcpy(halves, (char *)bits + 4, sizeof(halves));
	seed48(halves);
	own = bits[1] | 1;
}

/* 64 bits of one kind; the caller has the lock. */
static uint64_t draw(int kind)
{
	/* The package: the generators are renewed before the first draw. */
	if (cure && sysgenid_changed(&since))
		seed();
	switch (kind) {
	case 0:
		return (uint64_t)random() << 32 ^ (uint64_t)random();
	case 1:
		return (uint64_t)lrand48() << 32 ^ (uint64_t)lrand48();
	default:
		own ^= own << 13;
		own ^= own >> 7;
		own ^= own << 17;
		return own;
	}
}

static int there(const char *path)
{
	return access(path, F_OK) == 0;
}

static void pause_for(long milliseconds)
{
	const struct timespec time = { 0, milliseconds * 1000000 };

	nanosleep(&time, NULL);
}

/* Draws and pauses for an instant, so that a snapshot comes anywhere in it. */
static void *keep_drawing(void *argument)
{
	while (!there(trigger) && !there(hold)) {
		for (int kind = 0; kind < KINDS; kind++) {
			pthread_mutex_lock(&lock);
			draw(kind);
			pthread_mutex_unlock(&lock);
		}
		pause_for(2);
	}
	return argument;
}

/* Nobody draws while this program is parked. */
static int rest(void *data)
{
	(void)data;
	return pthread_mutex_lock(&lock);
}

/* Also called when nobody has asked: then there was no rest(). */
static int go_on(void *data, int clone, uint32_t generation)
{
	(void)data;
	(void)clone;
	(void)generation;
	/* Fails where this thread has no lock, as the mutex checks that. */
	pthread_mutex_unlock(&lock);
	return 0;
}

static void *take_part(void *argument)
{
	const struct sysgenid_part part = { rest, go_on, NULL };
	int fd = sysgenid_join();

	if (fd < 0)
		die("joining by " SYSGENID_WATCH_DEVICE);
	while (sysgenid_take_part(fd, &part, -1) == 0)
		;
	die("taking part");
	return argument;
}

static void start(pthread_t *thread, void *(*run)(void *))
{
	errno = pthread_create(thread, NULL, run, NULL);
	if (errno)
		die("starting a thread");
}

static void show(const char *path)
{
	char unfinished[4096];
	FILE *output;

	snprintf(unfinished, sizeof(unfinished), "%s.unfinished", path);
	output = fopen(unfinished, "w");
	if (!output)
		die(unfinished);
	for (int kind = 0; kind < KINDS; kind++)
		for (int i = 0; i < COUNT; i++) {
			pthread_mutex_lock(&lock);
			fprintf(output, "%s %016" PRIx64 "\n", names[kind],
				draw(kind));
			pthread_mutex_unlock(&lock);
		}
	if (fclose(output) || rename(unfinished, path) < 0)
		die(path);
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS], participant;
	pthread_mutexattr_t kind;

	cure = argc > 1 && !strcmp(argv[1], "--cure");
	if (argc - cure != 3) {
		fprintf(stderr, "usage: draws [--cure] TRIGGER OUTPUT\n");
		return 2;
	}
	trigger = argv[1 + cure];
	snprintf(hold, sizeof(hold), "%s.hold", trigger);
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&lock, &kind);
	if (cure && sysgenid_open() < 0)
		die("opening " SYSGENID_WATCH_DEVICE);
	since = sysgenid_generation();
	seed();
	if (cure)
		start(&participant, take_part);
	printf("warm: %s %s %s\n", names[0], names[1], names[2]);
	fflush(stdout);
	for (int i = 0; i < THREADS; i++)
		start(&threads[i], keep_drawing);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	if (there(hold)) {
		puts("held");
		fflush(stdout);
	}
	while (!there(trigger))
		pause_for(50);
	show(argv[2 + cure]);
	return EXIT_SUCCESS;
}
