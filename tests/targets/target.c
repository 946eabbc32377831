// SPDX-License-Identifier: GPL-2.0-only
/*
 * Orders and answers. Each line of standard input is an order with up to three numbers; each answer
 * has
 *
 *     BYTES BLOCKS SEEN_BYTES SEEN_BLOCKS MAP_BYTES FILE_BYTES RESERVED_BYTES EXTRA
 *
 * or is `unknown`. Arguments are orders too; with any, the program answers nothing and exits after
 * the last one.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "target.h"

struct account account;
long extra;

static int quiet;

static void put(const char *text, size_t length)
{
	while (length) {
		ssize_t done = write(1, text, length);

		if (done <= 0)
			_exit(9);
		text += done;
		length -= done;
	}
}

void fail(const char *why)
{
	put("error: ", 7);
	put(why, strlen(why));
	put("\n", 1);
	_exit(9);
}

/* Appends a number and a separator; returns what follows. */
static char *number(char *to, long value, char separator)
{
	char digits[24], *at = digits + sizeof(digits);

	do
		*--at = '0' + value % 10;
	while (value /= 10);
	memcpy(to, at, digits + sizeof(digits) - at);
	to += digits + sizeof(digits) - at;
	*to++ = separator;
	return to;
}

static void answer(void)
{
	char line[256], *to = line;

	to = number(to, account.bytes, ' ');
	to = number(to, account.blocks, ' ');
	to = number(to, account.seen_bytes, ' ');
	to = number(to, account.seen_blocks, ' ');
	to = number(to, account.map_bytes, ' ');
	to = number(to, account.file_bytes, ' ');
	to = number(to, account.reserved_bytes, ' ');
	to = number(to, extra, '\n');
	if (!quiet)
		put(line, to - line);
}

static int found(const struct order *list, const char *name, const long *numbers)
{
	if (!list)
		return 0;
	for (; list->name; list++) {
		if (!strcmp(list->name, name)) {
			list->obey(numbers[0], numbers[1], numbers[2]);
			return 1;
		}
	}
	return 0;
}

static void obey(char *line)
{
	const struct order *lists[] = {heap_orders, thread_orders, map_orders, process_orders,
				       cxx_orders};
	long numbers[3] = {0};
	char *rest = line + strcspn(line, " ");
	size_t i;

	if (*rest)
		*rest++ = '\0';
	for (i = 0; i < 3; i++)
		numbers[i] = strtol(rest, &rest, 10);
	extra = 0;
	for (i = 0; i < sizeof(lists) / sizeof(*lists); i++) {
		if (found(lists[i], line, numbers)) {
			answer();
			return;
		}
	}
	put("unknown\n", 8);
}

int main(int argc, char **argv)
{
	static char line[256];
	size_t length = 0;
	int i;

	quiet = argc > 1;
	for (i = 1; i < argc; i++)
		obey(strncpy(line, argv[i], sizeof(line) - 1));
	if (quiet)
		return 0;
	answer();
	while (length < sizeof(line) && read(0, line + length, 1) == 1) {
		if (line[length] != '\n') {
			length++;
			continue;
		}
		line[length] = '\0';
		length = 0;
		obey(line);
	}
	return 0;
}
