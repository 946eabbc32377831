// SPDX-License-Identifier: GPL-2.0-only
/*
 * Orders about the heap: each function of an allocator, called from a function of its own, whose
 * name a test looks for. N SIZE in the table at the end: so many blocks, so large.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "target.h"

/* These have only the commonest functions. */
#if defined(PREFIXED) || defined(WRAPPED)
#define FEW
#endif

/* Blocks held, oldest first: from `first` up to `next`. */
#define MAX_BLOCKS (1 << 21)
struct block {
	unsigned char *at;
	size_t bytes;
	void (*release)(void *, size_t);
};
static struct block blocks[MAX_BLOCKS];
static size_t first, next;

/* More than any allocator has. Volatile: the compiler would complain. */
static volatile size_t too_much = PTRDIFF_MAX;

static void mark(struct block *block)
{
	if (!block->bytes)
		return;
	block->at[0] = (unsigned char)block->bytes;
	block->at[block->bytes - 1] = (unsigned char)block->bytes;
}

static void check(const struct block *block)
{
	unsigned char wanted = (unsigned char)block->bytes;

	if (block->bytes && (block->at[0] != wanted || block->at[block->bytes - 1] != wanted))
		fail("a block was overwritten");
}

void count_in(size_t bytes)
{
	account.bytes += bytes;
	account.blocks++;
	account.seen_bytes += bytes;
	account.seen_blocks++;
}

void count_out(size_t bytes)
{
	account.bytes -= bytes;
	account.blocks--;
}

void keep(void *at, size_t bytes, void (*release)(void *, size_t))
{
	if (!at)
		fail("no memory");
	if (first == next)
		first = next = 0;
	if (next == MAX_BLOCKS)
		fail("too many blocks");
	blocks[next] = (struct block){at, bytes, release};
	mark(&blocks[next++]);
	count_in(bytes);
}

void refused(const void *block)
{
	if (block)
		fail("that had to fail");
}

NAMED void release_free(void *block, size_t bytes)
{
	(void)bytes;
	free(block);
}

static void drop(size_t i)
{
	check(&blocks[i]);
	blocks[i].release(blocks[i].at, blocks[i].bytes);
	count_out(blocks[i].bytes);
}

static struct block *last(long back)
{
	if ((size_t)back >= next - first)
		fail("so many blocks are not held");
	return &blocks[next - 1 - back];
}

/* --- the callers --- */

NAMED void *leak_malloc(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_reuse(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_calloc(size_t count, size_t bytes)
{
	void *block = calloc(count, bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_realloc(void *old, size_t bytes)
{
	void *block = realloc(old, bytes);

	KEEP_FRAME(block);
	return block;
}

#ifndef WRAPPED
NAMED void *leak_memalign(size_t alignment, size_t bytes)
{
	void *block = memalign(alignment, bytes);

	KEEP_FRAME(block);
	return block;
}
#endif

#ifndef FEW

NAMED int leak_posix_memalign(void **block, size_t alignment, size_t bytes)
{
	int error = posix_memalign(block, alignment, bytes);

	KEEP_FRAME(error);
	return error;
}

NAMED void *leak_aligned_alloc(size_t alignment, size_t bytes)
{
	void *block = aligned_alloc(alignment, bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_valloc(size_t bytes)
{
	void *block = valloc(bytes);

	KEEP_FRAME(block);
	return block;
}

#ifndef NO_PVALLOC
NAMED void *leak_pvalloc(size_t bytes)
{
	void *block = pvalloc(bytes);

	KEEP_FRAME(block);
	return block;
}
#endif

NAMED void *leak_reallocarray(void *old, size_t count, size_t bytes)
{
	void *block = reallocarray(old, count, bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_strdup(const char *text)
{
	void *block = strdup(text);

	KEEP_FRAME(block);
	return block;
}

#endif

/* Two functions that call one another in any order: each path is a stack of its own. */
NAMED void *leak_left(unsigned path, int depth, size_t bytes);

NAMED void *leak_right(unsigned path, int depth, size_t bytes)
{
	void *block = !depth	 ? malloc(bytes)
		      : path & 1 ? leak_right(path >> 1, depth - 1, bytes)
				 : leak_left(path >> 1, depth - 1, bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_left(unsigned path, int depth, size_t bytes)
{
	void *block = !depth	 ? malloc(bytes)
		      : path & 1 ? leak_right(path >> 1, depth - 1, bytes)
				 : leak_left(path >> 1, depth - 1, bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void *leak_deep(long depth, size_t bytes)
{
	void *block = depth ? leak_deep(depth - 1, bytes) : malloc(bytes);

	KEEP_FRAME(block);
	return block;
}

/* --- the orders --- */

static void order_malloc(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_malloc(size), size, release_free);
}

static void order_malloc_fail(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--)
		refused(leak_malloc(too_much));
}

static void order_calloc(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_calloc(3, size), 3 * size, release_free);
}

/* The product is 8 in 64 bits. */
static void order_calloc_overflow(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--)
		refused(leak_calloc((SIZE_MAX >> 3) + 2, 8));
}

static void order_realloc_null(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_realloc(NULL, size), size, release_free);
}

/* The last N blocks get another size. */
static void order_realloc(long n, long size, long unused)
{
	(void)unused;
	while (n--) {
		struct block *block = last(n);

		check(block);
		block->at = leak_realloc(block->at, size);
		if (!block->at)
			fail("no memory");
		count_out(block->bytes);
		count_in(size);
		block->bytes = size;
		mark(block);
	}
}

/* Some allocators free, others give the smallest block they have: standard C leaves it open. */
static void order_realloc_zero(long n, long unused, long unused2)
{
	long kept = 0;

	(void)unused, (void)unused2;
	while (n--) {
		struct block *block = last(kept);

		check(block);
		block->at = leak_realloc(block->at, 0);
		count_out(block->bytes);
		block->bytes = 0;
		if (block->at) {
			count_in(0);
			kept++;
		} else if (kept) {
			fail("once it frees and once it does not");
		} else {
			next--;
		}
	}
}

static void order_realloc_fail(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--) {
		struct block *block = last(n);

		refused(leak_realloc(block->at, too_much));
		check(block);
	}
}

#ifndef WRAPPED
static void order_memalign(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_memalign(64, size), size, release_free);
}
#endif

#ifndef FEW

static void order_posix_memalign(long n, long size, long unused)
{
	(void)unused;
	while (n--) {
		void *block = NULL;

		if (leak_posix_memalign(&block, 64, size))
			fail("no memory");
		keep(block, size, release_free);
	}
}

/* A wrong alignment, then too much: what the pointer held before, here a live block, is not new. */
static void order_posix_memalign_fail(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--) {
		void *block = last(0)->at;

		if (leak_posix_memalign(&block, 24, 4096) != EINVAL)
			fail("24 is no alignment");
		block = last(0)->at;
		if (leak_posix_memalign(&block, 64, too_much) != ENOMEM)
			fail("that had to fail");
	}
}

static void order_aligned_alloc(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_aligned_alloc(64, size), size, release_free);
}

static void order_valloc(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_valloc(size), size, release_free);
}

#ifndef NO_PVALLOC
static void order_pvalloc(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_pvalloc(size), size, release_free);
}
#endif

static void order_reallocarray(long n, long size, long unused)
{
	(void)unused;
	while (n--)
		keep(leak_reallocarray(NULL, 3, size), 3 * size, release_free);
}

static void order_reallocarray_overflow(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--) {
		struct block *block = last(n);

		refused(leak_reallocarray(block->at, (SIZE_MAX >> 3) + 2, 8));
		check(block);
	}
}

/* SIZE counts the byte that ends the text. */
static void order_strdup(long n, long size, long unused)
{
	static char text[4096];

	(void)unused;
	if (size < 1 || (size_t)size > sizeof(text))
		fail("no such text");
	memset(text, 'x', sizeof(text));
	text[size - 1] = '\0';
	while (n--)
		keep(leak_strdup(text), size, release_free);
}

#endif

/* Blocks that are freed at once. */
static void order_churn(long n, long size, long unused)
{
	(void)unused;
	while (n--) {
		keep(leak_malloc(size), size, release_free);
		drop(--next);
	}
}

/* The block of another caller is freed, and its address given out again. EXTRA: how often it was
 * the same one. */
static void order_reuse(long n, long size, long unused)
{
	(void)unused;
	while (n--) {
		void *block = leak_malloc(size);
		uintptr_t before = (uintptr_t)block;

		count_in(size);
		release_free(block, size);
		count_out(size);
		block = leak_reuse(size);
		extra += (uintptr_t)block == before;
		keep(block, size, release_free);
	}
}

/* N blocks, each from a stack of its own: at most 1024. */
static void order_stacks(long n, long size, long unused)
{
	long path;

	(void)unused;
	for (path = 0; path < n; path++)
		keep(leak_left(path, 10, size), size, release_free);
}

/* One block at the end of a stack of N frames and some. */
static void order_deep(long n, long size, long unused)
{
	(void)unused;
	keep(leak_deep(n, size), size, release_free);
}

static void order_free(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--) {
		if (first == next)
			fail("so many blocks are not held");
		drop(first++);
	}
}

static void order_free_last(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--) {
		last(0);
		drop(--next);
	}
}

static void order_free_all(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	while (first < next)
		drop(first++);
	free_all_of_threads();
}

static void order_free_null(long n, long unused, long unused2)
{
	(void)unused, (void)unused2;
	while (n--)
		release_free(NULL, 0);
}

/* Frees every block held without a word: what a forked child does with what it inherited. */
void free_inherited(void)
{
	while (first < next)
		drop(first++);
}

/* Address of the block that was allocated last. */
static void order_last(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	extra = (long)(uintptr_t)last(0)->at;
}

/* EXTRA: what the allocator itself says these blocks can hold, never less than what was asked for.
 */
static void order_verify(long unused, long unused2, long unused3)
{
	size_t i, bytes = 0;

	(void)unused, (void)unused2, (void)unused3;
	for (i = first; i < next; i++) {
		check(&blocks[i]);
		bytes += blocks[i].bytes;
#ifndef PREFIXED
		size_t usable = malloc_usable_size(blocks[i].at);

		if (usable < blocks[i].bytes)
			fail("a block is smaller than asked for");
		extra += usable;
#endif
	}
	if (bytes > account.bytes || next - first > account.blocks)
		fail("the account is wrong");
}

const struct order heap_orders[] = {
	{"malloc", order_malloc},
	{"malloc-fail", order_malloc_fail},
	{"calloc", order_calloc},
	{"calloc-overflow", order_calloc_overflow},
	{"realloc-null", order_realloc_null},
	{"realloc", order_realloc},
	{"realloc-zero", order_realloc_zero},
	{"realloc-fail", order_realloc_fail},
#ifndef WRAPPED
	{"memalign", order_memalign},
#endif
#ifndef FEW
	{"posix_memalign", order_posix_memalign},
	{"posix_memalign-fail", order_posix_memalign_fail},
	{"aligned_alloc", order_aligned_alloc},
	{"valloc", order_valloc},
#ifndef NO_PVALLOC
	{"pvalloc", order_pvalloc},
#endif
	{"reallocarray", order_reallocarray},
	{"reallocarray-overflow", order_reallocarray_overflow},
	{"strdup", order_strdup},
#endif
	{"churn", order_churn},
	{"reuse", order_reuse},
	{"stacks", order_stacks},
	{"deep", order_deep},
	{"free", order_free},
	{"free-last", order_free_last},
	{"free-all", order_free_all},
	{"free-null", order_free_null},
	{"last", order_last},
	{"verify", order_verify},
	{NULL, NULL},
};
