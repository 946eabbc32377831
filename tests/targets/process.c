// SPDX-License-Identifier: GPL-2.0-only
/*
 * Orders about processes, and about code that comes later.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

extern char **environ;

static pid_t staying;

NAMED void *leak_child(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	return block;
}

static pid_t forked(void)
{
	pid_t pid;

	if (threads_running())
		fail("only a single thread forks");
	pid = fork();
	if (pid < 0)
		fail("cannot fork");
	return pid;
}

static void reaped(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		fail("the child failed");
}

/* A child frees what it inherited, and exits. */
static void order_fork(long unused, long unused2, long unused3)
{
	pid_t pid = forked();

	(void)unused, (void)unused2, (void)unused3;
	if (!pid) {
		free_inherited();
		_exit(0);
	}
	reaped(pid);
}

/* A child allocates N blocks of its own, and exits with them. */
static void order_fork_leak(long n, long size, long unused)
{
	pid_t pid = forked();

	(void)unused;
	if (!pid) {
		while (n--)
			if (!leak_child(size))
				_exit(1);
		_exit(0);
	}
	reaped(pid);
}

/* The same, but it stays until `reap`. EXTRA: its PID. */
static void order_fork_stay(long n, long size, long unused)
{
	int ends[2];
	char byte;

	(void)unused;
	if (staying || pipe(ends))
		fail("one child at a time");
	staying = forked();
	if (!staying) {
		free_inherited();
		while (n--)
			if (!leak_child(size))
				_exit(1);
		if (write(ends[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ends[1]);
	if (read(ends[0], &byte, 1) != 1)
		fail("the child failed");
	close(ends[0]);
	extra = staying;
}

/* A child obeys from now on, with the account it inherits; the parent waits for its end. EXTRA:
 * its PID. */
static void order_fork_over(long unused, long unused2, long unused3)
{
	pid_t pid = forked();

	(void)unused, (void)unused2, (void)unused3;
	if (pid) {
		reaped(pid);
		_exit(0);
	}
	extra = getpid();
}

static void order_reap(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	kill(staying, SIGKILL);
	waitpid(staying, NULL, 0);
	staying = 0;
}

/* Starts over; the answer is that of the new program. */
static void order_exec(long unused, long unused2, long unused3)
{
	char *arguments[] = {"target", NULL};

	(void)unused, (void)unused2, (void)unused3;
	execve("/proc/self/exe", arguments, environ);
	fail("cannot exec");
}

static void order_exit(long code, long unused, long unused2)
{
	(void)unused, (void)unused2;
	exit(code);
}

/* With orders as arguments nothing else waits. */
static void order_pause(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	for (;;)
		pause();
}

#ifdef CONSTRUCTOR
NAMED void *leak_constructor(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	return block;
}

/* Before main: 23 blocks of 101 bytes. */
__attribute__((constructor)) static void construct(void)
{
	int i;

	for (i = 0; i < 23; i++)
		keep(leak_constructor(101), 101, release_free);
}
#endif

#ifndef NO_DLOPEN

static void *plugin, *allocator;

/* A library beside this program. */
static void *load(const char *name)
{
	static char path[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 64);
	char *slash;
	void *library;

	if (length < 0)
		fail("cannot find this program");
	path[length] = '\0';
	slash = strrchr(path, '/');
	strcpy(slash + 1, name);
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library)
		fail(dlerror());
	return library;
}

static void *function(void *library, const char *name)
{
	void *at = library ? dlsym(library, name) : NULL;

	if (!at)
		fail("no such function is loaded");
	return at;
}

static void order_dlopen(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	plugin = load("libplugin.so");
	function(plugin, "plugin_malloc");
}

/* N blocks from the library. */
static void order_plugin(long n, long size, long unused)
{
	void *(*get)(size_t) = function(plugin, "plugin_malloc");

	(void)unused;
	while (n--)
		keep(get(size), size, release_free);
}

/* The library goes, and its blocks stay. */
static void order_dlclose(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	dlclose(plugin);
	plugin = NULL;
}

/* Another allocator comes. */
static void order_dlopen_allocator(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	allocator = load("libmimalloc.so");
	function(allocator, "mi_malloc");
}

static void (*other_free)(void *);

static void release_other(void *block, size_t bytes)
{
	(void)bytes;
	other_free(block);
}

NAMED void *leak_other(void *(*get)(size_t), size_t bytes)
{
	void *block = get(bytes);

	KEEP_FRAME(block);
	return block;
}

/* N blocks from it. */
static void order_other(long n, long size, long unused)
{
	void *(*get)(size_t) = function(allocator, "mi_malloc");

	(void)unused;
	other_free = function(allocator, "mi_free");
	while (n--)
		keep(leak_other(get, size), size, release_other);
}

#endif

const struct order process_orders[] = {
	{"fork", order_fork},
	{"fork-leak", order_fork_leak},
	{"fork-stay", order_fork_stay},
	{"fork-over", order_fork_over},
	{"reap", order_reap},
	{"exec", order_exec},
	{"exit", order_exit},
	{"pause", order_pause},
#ifndef NO_DLOPEN
	{"dlopen", order_dlopen},
	{"plugin", order_plugin},
	{"dlclose", order_dlclose},
	{"dlopen-allocator", order_dlopen_allocator},
	{"other", order_other},
#endif
	{NULL, NULL},
};
