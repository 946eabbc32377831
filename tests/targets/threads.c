// SPDX-License-Identifier: GPL-2.0-only
/*
 * Orders about threads. Those of the pool exist before a watcher comes, so that nothing but the
 * orders allocates; what starting threads costs is in the stacks of pthread_create, not in the
 * account.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "target.h"

#define MAX_THREADS 32
#define MAX_OWN 8192

/* What a thread holds. Only it touches this while it works. */
static struct own {
	void *blocks[MAX_OWN];
	size_t held, seen, size;
} own[MAX_THREADS];

static _Atomic(void *) slots[MAX_THREADS];
static size_t slot_size;

static int threads, rounds;
static size_t round_size;
static void (*job)(int self);
static pthread_barrier_t ready, done;
static atomic_int stopping;
static int in_background;

NAMED void *leak_thread(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	if (!block)
		fail("no memory");
	return block;
}

NAMED void *leak_exchange(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	if (!block)
		fail("no memory");
	return block;
}

static void own_block(struct own *mine, void *block)
{
	if (mine->held == MAX_OWN)
		fail("too many blocks in a thread");
	mine->blocks[mine->held++] = block;
}

/* Every second block is freed at once. */
static void job_keep_half(int self)
{
	struct own *mine = &own[self];
	int i;

	mine->size = round_size;
	mine->seen = rounds;
	for (i = 0; i < rounds; i++) {
		void *block = leak_thread(round_size);

		if (i % 2)
			release_free(block, round_size);
		else
			own_block(mine, block);
	}
}

static void job_free_neighbours(int self)
{
	struct own *theirs = &own[(self + 1) % threads];

	while (theirs->held)
		release_free(theirs->blocks[--theirs->held], theirs->size);
}

/* Each new block takes the place of one of another thread, which is freed. */
static void job_exchange(int self)
{
	int i;

	for (i = 0; i < rounds; i++) {
		void *block = leak_exchange(round_size);

		release_free(atomic_exchange(&slots[(self + i) % threads], block), round_size);
	}
}

static void job_until_stopped(int self)
{
	size_t size = round_size + 16 * self;

	while (!atomic_load(&stopping)) {
		void *block = leak_thread(size);

		release_free(block, size);
	}
}

static void *serve(void *self)
{
	for (;;) {
		pthread_barrier_wait(&ready);
		job((int)(long)self);
		pthread_barrier_wait(&done);
	}
	return NULL;
}

static void start(void (*what)(int), long n, long size)
{
	if (!threads || in_background)
		fail("no pool at rest");
	job = what;
	rounds = n;
	round_size = size;
	pthread_barrier_wait(&ready);
}

static void finish(void)
{
	pthread_barrier_wait(&done);
}

int threads_running(void)
{
	return threads;
}

/* N threads that wait for work; once. */
static void order_pool(long n, long unused, long unused2)
{
	pthread_attr_t small;
	pthread_t id;
	long i;

	(void)unused, (void)unused2;
	if (threads || n < 1 || n > MAX_THREADS)
		fail("no such pool");
	threads = n;
	pthread_barrier_init(&ready, NULL, n + 1);
	pthread_barrier_init(&done, NULL, n + 1);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	for (i = 0; i < n; i++)
		if (pthread_create(&id, &small, serve, (void *)i))
			fail("no thread");
	/* Until each has run: some allocators give a new thread memory on its first call. */
	start(job_keep_half, 2, 1);
	finish();
	start(job_free_neighbours, 0, 0);
	finish();
}

/* Each thread of the pool allocates N blocks of SIZE and frees every second one. */
static void order_threads(long n, long size, long unused)
{
	int i;
	size_t k;

	(void)unused;
	if (account.blocks && own[0].held)
		fail("the threads hold something already");
	start(job_keep_half, n, size);
	finish();
	for (i = 0; i < threads; i++) {
		for (k = 0; k < own[i].seen; k++)
			count_in(size);
		for (k = own[i].held; k < own[i].seen; k++)
			count_out(size);
	}
}

/* All at once, each frees what its neighbour holds. */
static void order_cross_free(long unused, long unused2, long unused3)
{
	int i;
	size_t k;

	(void)unused, (void)unused2, (void)unused3;
	for (i = 0; i < threads; i++)
		for (k = 0; k < own[i].held; k++)
			count_out(own[i].size);
	start(job_free_neighbours, 0, 0);
	finish();
}

/* Each thread allocates N blocks and frees as many of anybody's, at the same time. One for each
 * thread remains. */
static void order_exchange(long n, long size, long unused)
{
	int i;
	long k;

	(void)unused;
	if (atomic_load(&slots[0]))
		fail("exchanged already");
	slot_size = size;
	start(job_exchange, n, size);
	finish();
	for (i = 0; i < threads; i++)
		for (k = 0; k < n; k++)
			count_in(size);
	for (i = 0; i < threads; i++)
		for (k = !!atomic_load(&slots[i]); k < n; k++)
			count_out(size);
}

/* The pool allocates and frees until `stop`; the account knows nothing of that. */
static void order_background(long size, long unused, long unused2)
{
	(void)unused, (void)unused2;
	atomic_store(&stopping, 0);
	start(job_until_stopped, 0, size);
	in_background = 1;
}

static void order_stop(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	if (!in_background)
		fail("nothing to stop");
	atomic_store(&stopping, 1);
	finish();
	in_background = 0;
}

static void *live_once(void *self)
{
	job_keep_half((int)(long)self);
	return NULL;
}

/* COUNT new threads do the work of `threads`, then end. */
static void order_spawn(long count, long n, long size)
{
	pthread_t ids[MAX_THREADS];
	size_t k;
	long i;

	if (threads || count > MAX_THREADS || own[0].held)
		fail("no room for new threads");
	rounds = n;
	round_size = size;
	for (i = 0; i < count; i++)
		if (pthread_create(&ids[i], NULL, live_once, (void *)i))
			fail("no thread");
	for (i = 0; i < count; i++)
		pthread_join(ids[i], NULL);
	for (i = 0; i < count; i++) {
		for (k = 0; k < own[i].seen; k++)
			count_in(size);
		for (k = own[i].held; k < own[i].seen; k++)
			count_out(size);
	}
}

void free_all_of_threads(void)
{
	int i;

	for (i = 0; i < MAX_THREADS; i++) {
		void *block = atomic_exchange(&slots[i], NULL);

		while (own[i].held) {
			release_free(own[i].blocks[--own[i].held], own[i].size);
			count_out(own[i].size);
		}
		if (block) {
			release_free(block, slot_size);
			count_out(slot_size);
		}
	}
}

const struct order thread_orders[] = {
	{"pool", order_pool},
	{"threads", order_threads},
	{"cross-free", order_cross_free},
	{"exchange", order_exchange},
	{"background", order_background},
	{"stop", order_stop},
	{"spawn", order_spawn},
	{NULL, NULL},
};
