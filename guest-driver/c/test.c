// SPDX-License-Identifier: Apache-2.0
/*
 * The header with a stand-in for the device. Compiled as C and as C++:
 *
 *	cc -std=c11 -Wall -Wextra -Werror test.c test_other.c && ./a.out
 */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static uint32_t words[2] = { 5, 0 };
static uint32_t acknowledged = 5;
static int counter_file = -1;
static int asks, outcome, interruptions, park_error, late;
static char told[256];

static void tell(const char *what, long number)
{
	char one[32];

	snprintf(one, sizeof(one), "%s %ld;", what, number);
	strncat(told, one, sizeof(told) - strlen(told) - 1);
}

static void move(uint32_t counter)
{
	words[0] = counter;
	if (pwrite(counter_file, words, sizeof(words), 0) != sizeof(words))
		abort();
}

static int fake_poll(struct pollfd *file, nfds_t count, int milliseconds)
{
	(void)count;
	(void)milliseconds;
	file->revents = (short)((asks ? POLLPRI : 0) |
				(words[0] != acknowledged ? POLLIN : 0));
	return file->revents != 0;
}

static int fake_ioctl(int fd, unsigned long request, unsigned long argument)
{
	(void)fd;
	(void)argument;
	if (request != 0xE407)
		abort();
	if (interruptions-- > 0) {
		errno = EINTR;
		return -1;
	}
	if (park_error) {
		errno = park_error;
		return -1;
	}
	asks = 0;
	tell("park", outcome);
	move(words[0] + (uint32_t)outcome);
	/* Over before anybody parked: the device does not say what this is. */
	return late ? 0 : outcome;
}

static ssize_t fake_read(int fd, void *buffer, size_t length)
{
	(void)fd;
	if (words[0] == acknowledged) {
		errno = EAGAIN;
		return -1;
	}
	memcpy(buffer, words, length);
	return (ssize_t)length;
}

static ssize_t fake_write(int fd, const void *buffer, size_t length)
{
	uint32_t generation;

	(void)fd;
	memcpy(&generation, buffer, sizeof(generation));
	if (generation != words[0]) {
		errno = EINVAL;
		return -1;
	}
	acknowledged = generation;
	tell("acknowledge", generation);
	return (ssize_t)length;
}

/* What the header calls from here on. */
#define poll(file, count, limit)	fake_poll(file, count, limit)
#define ioctl(fd, request, argument)	fake_ioctl(fd, request, argument)
#define read(fd, buffer, length)	fake_read(fd, buffer, length)
#define write(fd, buffer, length)	fake_write(fd, buffer, length)
#include "sysgenid_watch.h"

/* Of test_other.c. */
#ifdef __cplusplus
extern "C"
#endif
uint32_t other_generation(void);

static int fails;
static uint32_t moves_to;

static int before(void *data)
{
	(void)data;
	tell("before", fails);
	return fails;
}

static int after(void *data, int clone, uint32_t generation)
{
	(void)data;
	tell(clone ? "clone" : "original", generation);
	if (moves_to)
		move(moves_to);
	moves_to = 0;
	return fails;
}

static const struct sysgenid_part part = { before, after, NULL };
static unsigned int failed;
static unsigned int done;

static void check(const char *what, int holds)
{
	done++;
	if (holds)
		return;
	failed++;
	printf("FAILED: %s (told: %s)\n", what, told);
}

/* Whether a turn ends with this errno (0: well), having told this. */
static int turn(int error, const char *expected)
{
	int result;

	told[0] = 0;
	errno = 0;
	result = sysgenid_take_part(-1, &part, -1);
	if (result == 0 ? error : errno != error)
		return 0;
	return strcmp(told, expected) == 0;
}

static void test_counter(void)
{
	char path[] = "/tmp/sysgenid-watch-XXXXXX";
	uint32_t since;

	since = sysgenid_generation();
	check("without a device nothing ever changes", !sysgenid_changed(&since));
	check("a device that is missing is told of",
	      sysgenid_open_at("/nonexistent") < 0 && errno == ENOENT);
	counter_file = mkstemp(path);
	words[1] = 1;
	move(5);
	check("the counter is mapped", sysgenid_open_at(path) == 0);
	check("and so it is for other files", other_generation() == 5);
	unlink(path);
	check("the first look finds a change", sysgenid_changed(&since));
	check("the second none", !sysgenid_changed(&since));
	check("a request is seen", sysgenid_pending());
	words[1] = 0;
	move(4);
	check("a lower counter is a change, too", sysgenid_changed(&since));
	check("and it is taken over", since == 4 && !sysgenid_changed(&since));
	check("a request that is over is not seen", !sysgenid_pending());
	move(5);
}

static void test_taking_part(void)
{
	check("nothing happens", turn(0, ""));
	asks = 1;
	check("the original parks and acknowledges nothing",
	      turn(0, "before 0;park 0;original 5;"));
	asks = outcome = 1;
	interruptions = 2;
	check("a signal does not keep a clone from parking and adapting",
	      turn(0, "before 0;park 1;clone 6;acknowledge 6;"));
	asks = late = 1;
	check("a clone that parks too late is no original",
	      turn(0, "before 0;park 1;clone 7;acknowledge 7;"));
	late = 0;
	move(9);
	check("a generation that nobody asked for is told of",
	      turn(0, "clone 9;acknowledge 9;"));
	move(10);
	moves_to = 12;
	check("one that begins meanwhile is adapted to",
	      turn(0, "clone 10;clone 12;acknowledge 12;"));
	fails = 1;
	move(13);
	check("what has failed is not acknowledged", turn(ECANCELED, "clone 13;"));
	fails = 0;
	check("and is told of again", turn(0, "clone 13;acknowledge 13;"));
	asks = fails = 1;
	check("who does not come to rest does not park",
	      turn(ECANCELED, "before 1;original 13;") && asks);
	move(14);
	check("nor is a clone that did not come to rest",
	      turn(ECANCELED, "before 1;clone 14;") && asks);
	acknowledged = 14;
	fails = 0;
	park_error = EPERM;
	check("an error is handed on", turn(EPERM, "before 0;original 14;"));
}

int main(void)
{
	test_counter();
	test_taking_part();
	printf("%u passed, %u failed\n", done - failed, failed);
	return failed != 0;
}
