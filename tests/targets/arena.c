// SPDX-License-Identifier: GPL-2.0-only
/*
 * The allocator of arena.h: blocks of 64 bytes times a power of two, up to 64 KiB, on a list for
 * each size.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "target.h"

/* The probe has that name, not the one the header gives it. */
#undef free

#ifdef USDT
#include <sys/sdt.h>
#define ALLOCATED(block, bytes) DTRACE_PROBE3(otel_memory, alloc, block, bytes, bytes)
#define FREED(block) DTRACE_PROBE1(otel_memory, free, block)
#else
#define ALLOCATED(block, bytes) ((void)0)
#define FREED(block) ((void)0)
#endif

#define ARENA (256UL << 20)
#define CLASSES 11

/* Before each block; as large as any alignment that is asked for. */
union head {
	struct {
		size_t bytes;
		int class;
		union head *next;
	};
	char room[64];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static union head *unused[CLASSES];
static char *arena, *end;

static union head *take(int class)
{
	union head *head;

	pthread_mutex_lock(&lock);
	if (!arena) {
		arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		end = arena + ARENA;
	}
	head = unused[class];
	if (head) {
		unused[class] = head->next;
	} else if (arena + sizeof(*head) + (64UL << class) <= end) {
		head = (union head *)arena;
		arena += sizeof(*head) + (64UL << class);
	}
	pthread_mutex_unlock(&lock);
	return head;
}

static void *get(size_t bytes)
{
	union head *head;
	int class = 0;

	while (class < CLASSES && (64UL << class) < bytes)
		class ++;
	if (class == CLASSES || !(head = take(class)))
		return NULL;
	head->bytes = bytes;
	head->class = class;
	return head + 1;
}

static void put(void *block)
{
	union head *head = (union head *)block - 1;

	pthread_mutex_lock(&lock);
	head->next = unused[head->class];
	unused[head->class] = head;
	pthread_mutex_unlock(&lock);
}

NAMED void *my_malloc(size_t bytes)
{
	void *block = get(bytes);

	if (block)
		ALLOCATED(block, bytes);
	KEEP_FRAME(block);
	return block;
}

NAMED void *my_calloc(size_t count, size_t bytes)
{
	void *block = bytes && count > SIZE_MAX / bytes ? NULL : my_malloc(count * bytes);

	if (block)
		memset(block, 0, count * bytes);
	KEEP_FRAME(block);
	return block;
}

NAMED void *my_memalign(size_t alignment, size_t bytes)
{
	void *block = alignment > sizeof(union head) ? NULL : my_malloc(bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void my_free(void *block)
{
	if (!block)
		return;
	FREED(block);
	put(block);
}

NAMED void *my_realloc(void *old, size_t bytes)
{
	size_t before = old ? ((union head *)old - 1)->bytes : 0;
	void *block = my_malloc(bytes);

	if (block && old) {
		memcpy(block, old, before < bytes ? before : bytes);
		my_free(old);
	}
	KEEP_FRAME(block);
	return block;
}
