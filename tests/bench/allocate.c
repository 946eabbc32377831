// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memleak is measured on: a program that allocates and frees, or only
 * allocates. `allocate THREADS CPU...`, compiled as C for malloc and free, as
 * C++ for new and delete. Orders come a line each on standard input; each is
 * answered with a line, and their end is the program's:
 *
 *	pairs N		  each thread allocates and frees N times; the answer is
 *			  the CPU time of a pair in ns, the mean of all threads
 *	live N STACKS	  allocates N blocks from so many stacks and keeps them
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#ifdef __cplusplus
#include <new>
#define GET(bytes) ::operator new(bytes)
#define PUT(block) ::operator delete(block)
#else
#define GET(bytes) malloc(bytes)
#define PUT(block) free(block)
#endif

#define MAX_THREADS 64
#define DEPTH 10      /* frames of a stack in `pairs` */
#define LIVE_DEPTH 16 /* and in `live`: 2^16 different ones */
#define HELD 64	      /* blocks a thread holds at a time */
#define NOINLINE __attribute__((noinline))

static const size_t sizes[] = {24, 100, 16, 512, 48, 1000, 32, 4000};
#define SIZES (sizeof(sizes) / sizeof(*sizes))

/*
 * Every call goes down through as many frames, each of one of two functions:
 * the bits of the path say which.
 */
static NOINLINE void *left(unsigned depth, unsigned path, size_t bytes);
static NOINLINE void *right(unsigned depth, unsigned path, size_t bytes);

static inline void *down(unsigned depth, unsigned path, size_t bytes)
{
	if (!depth)
		return GET(bytes);
	if (path & 1)
		return right(depth - 1, path >> 1, bytes);
	return left(depth - 1, path >> 1, bytes);
}

/* What follows the call keeps it from becoming a jump. */
static void *left(unsigned depth, unsigned path, size_t bytes)
{
	void *block = down(depth, path, bytes);

	__asm__ volatile("" : "+r"(block));
	return block;
}

static void *right(unsigned depth, unsigned path, size_t bytes)
{
	void *block = down(depth, path, bytes);

	__asm__ volatile("" : "+r"(block));
	return block;
}

static pthread_barrier_t begin, end;
static unsigned long pairs;
static uint64_t total_ns;

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *work(void *unused)
{
	(void)unused;
	for (;;) {
		void *held[HELD] = {0};
		uint64_t before;

		pthread_barrier_wait(&begin);
		if (!pairs)
			return NULL;
		before = cpu_ns();
		for (unsigned long i = 0; i < pairs; i++) {
			void **slot = &held[i % HELD];

			if (*slot)
				PUT(*slot);
			*slot = down(DEPTH, i % SIZES, sizes[i % SIZES]);
		}
		for (int i = 0; i < HELD; i++)
			if (held[i])
				PUT(held[i]);
		__atomic_fetch_add(&total_ns, cpu_ns() - before, __ATOMIC_RELAXED);
		pthread_barrier_wait(&end);
	}
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t ids[MAX_THREADS];
	char order[128];
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	for (int i = 2; i < argc; i++)
		CPU_SET((unsigned)atoi(argv[i]), &cpus);
	if (threads < 1 || threads > MAX_THREADS || sched_setaffinity(0, sizeof(cpus), &cpus))
		return 2;
	pthread_barrier_init(&begin, NULL, (unsigned)threads + 1);
	pthread_barrier_init(&end, NULL, (unsigned)threads + 1);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, work, NULL))
			return 1;
	while (fgets(order, sizeof(order), stdin)) {
		unsigned long n, stacks;

		if (sscanf(order, "pairs %lu", &n) == 1 && n) {
			pairs = n;
			total_ns = 0;
			pthread_barrier_wait(&begin);
			pthread_barrier_wait(&end);
			printf("%.3f\n", (double)total_ns / (double)n / threads);
		} else if (sscanf(order, "live %lu %lu", &n, &stacks) == 2 && stacks) {
			for (unsigned long i = 0; i < n; i++)
				*(char *)down(LIVE_DEPTH, (unsigned)(i % stacks), sizes[i % 3]) = 1;
			puts("done");
		} else {
			return 2;
		}
		fflush(stdout);
	}
	pairs = 0;
	pthread_barrier_wait(&begin);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	return 0;
}
