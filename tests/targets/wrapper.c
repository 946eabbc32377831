// SPDX-License-Identifier: GPL-2.0-only
/*
 * An allocator in front of the C library's: each block it gives begins inside one it got. Both are
 * allocators a watcher finds, but only what the outer one gave and was asked for counts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "target.h"

#define HEAD 64

static void *(*inner_malloc)(size_t);
static void (*inner_free)(void *);

/* What the dynamic linker itself asks for before the C library's functions are found; never freed.
 */
static char early[65536];
static size_t early_used;

static void *get(size_t bytes)
{
	static int finding;
	char *block;

	if (!inner_free && !finding) {
		finding = 1;
		inner_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
		inner_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
	}
	if (bytes > PTRDIFF_MAX - HEAD)
		return NULL;
	if (inner_free) {
		block = inner_malloc(bytes + HEAD);
	} else {
		block = early + early_used;
		early_used += (bytes + HEAD + 63) / 64 * 64;
		if (early_used > sizeof(early))
			return NULL;
	}
	if (!block)
		return NULL;
	memcpy(block, &bytes, sizeof(bytes));
	return block + HEAD;
}

static void put(char *block)
{
	if (block && (block < early || block >= early + sizeof(early)))
		inner_free(block - HEAD);
}

NAMED void *malloc(size_t bytes)
{
	void *block = get(bytes);

	KEEP_FRAME(block);
	return block;
}

NAMED void free(void *block)
{
	put(block);
	__asm__ volatile("");
}

NAMED void *calloc(size_t count, size_t bytes)
{
	void *block = bytes && count > SIZE_MAX / bytes ? NULL : malloc(count * bytes);

	if (block)
		memset(block, 0, count * bytes);
	KEEP_FRAME(block);
	return block;
}

NAMED void *realloc(void *old, size_t bytes)
{
	size_t before = 0;
	void *block = malloc(bytes);

	if (block && old) {
		memcpy(&before, (char *)old - HEAD, sizeof(before));
		memcpy(block, old, before < bytes ? before : bytes);
		free(old);
	}
	KEEP_FRAME(block);
	return block;
}

size_t malloc_usable_size(void *block)
{
	size_t bytes;

	memcpy(&bytes, (char *)block - HEAD, sizeof(bytes));
	return bytes;
}
