// SPDX-License-Identifier: GPL-2.0-only
/*
 * Orders about mappings of the program's own, in pages. Each acts on the mapping that was made
 * last; what each page of it is stays in a table, from which the account is made anew.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "target.h"

#define MAX_REGIONS 64
#define MAX_PAGES 4096

enum { GONE, ANON, BACKED, RESERVED };

static struct region {
	char *at;
	long pages;
	char is[MAX_PAGES];
} regions[MAX_REGIONS];
static int count;
static size_t broken; /* bytes gained with sbrk */

static size_t page(void)
{
	return sysconf(_SC_PAGESIZE);
}

static void recount(void)
{
	size_t pages[4] = {0};
	int i;
	long k;

	for (i = 0; i < count; i++)
		for (k = 0; k < regions[i].pages; k++)
			pages[(int)regions[i].is[k]]++;
	account.map_bytes = pages[ANON] * page() + broken;
	account.file_bytes = pages[BACKED] * page();
	account.reserved_bytes = pages[RESERVED] * page();
}

/* --- the callers --- */

NAMED void *leak_mmap(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	KEEP_FRAME(at);
	return at;
}

NAMED void *leak_file(size_t bytes, int fd)
{
	void *at = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);

	KEEP_FRAME(at);
	return at;
}

NAMED void *leak_fixed(void *where, size_t bytes)
{
	void *at = mmap(where, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	KEEP_FRAME(at);
	return at;
}

NAMED void *leak_reserve(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	KEEP_FRAME(at);
	return at;
}

NAMED void *leak_mremap(void *old, size_t bytes, size_t wanted)
{
	void *at = mremap(old, bytes, wanted, MREMAP_MAYMOVE);

	KEEP_FRAME(at);
	return at;
}

NAMED void *leak_sbrk(long bytes)
{
	void *at = sbrk(bytes);

	KEEP_FRAME(at);
	return at;
}

/* --- the orders --- */

static struct region *current(long from, long pages)
{
	if (!count || from < 0 || pages < 0 || from + pages > regions[count - 1].pages)
		fail("no such pages");
	return &regions[count - 1];
}

static void add(void *at, long pages, int what)
{
	if (at == MAP_FAILED)
		fail("no memory");
	if (count == MAX_REGIONS || pages < 1 || pages > MAX_PAGES)
		fail("no room for the mapping");
	regions[count].at = at;
	regions[count].pages = pages;
	memset(regions[count].is, what, pages);
	count++;
	recount();
}

static void order_map(long pages, long unused, long unused2)
{
	(void)unused, (void)unused2;
	add(leak_mmap(pages * page()), pages, ANON);
}

static void order_map_file(long pages, long unused, long unused2)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	(void)unused, (void)unused2;
	if (fd < 0)
		fail("cannot open this program");
	add(leak_file(pages * page(), fd), pages, BACKED);
	close(fd);
}

static void order_map_fixed(long from, long pages, long unused)
{
	struct region *region = current(from, pages);

	(void)unused;
	if (leak_fixed(region->at + from * page(), pages * page()) == MAP_FAILED)
		fail("cannot map over a mapping");
	memset(region->is + from, ANON, pages);
	recount();
}

static void order_reserve(long pages, long unused, long unused2)
{
	(void)unused, (void)unused2;
	add(leak_reserve(pages * page()), pages, RESERVED);
}

static void protect(long from, long pages, int protection, int what)
{
	struct region *region = current(from, pages);

	if (mprotect(region->at + from * page(), pages * page(), protection))
		fail("cannot protect");
	memset(region->is + from, what, pages);
	recount();
}

static void order_commit(long from, long pages, long unused)
{
	(void)unused;
	protect(from, pages, PROT_READ | PROT_WRITE, ANON);
}

static void order_decommit(long from, long pages, long unused)
{
	(void)unused;
	protect(from, pages, PROT_NONE, RESERVED);
}

static void order_unmap(long from, long pages, long unused)
{
	struct region *region = current(from, pages);

	(void)unused;
	if (munmap(region->at + from * page(), pages * page()))
		fail("cannot unmap");
	memset(region->is + from, GONE, pages);
	recount();
}

/* The whole last mapping gets another size, and may get another place. EXTRA: whether it did. */
static void order_remap(long pages, long unused, long unused2)
{
	struct region *region = current(0, 0);
	char *at = leak_mremap(region->at, region->pages * page(), pages * page());

	(void)unused, (void)unused2;
	if (at == MAP_FAILED || pages < 1 || pages > MAX_PAGES)
		fail("cannot resize");
	if (pages > region->pages)
		memset(region->is + region->pages, ANON, pages - region->pages);
	extra = at != region->at;
	region->at = at;
	region->pages = pages;
	recount();
}

/* Something is mapped right behind the last mapping, so that it must move to grow. */
static void order_block(long unused, long unused2, long unused3)
{
	struct region *region = current(0, 0);
	char *end = region->at + region->pages * page();

	(void)unused, (void)unused2, (void)unused3;
	/* Taken already is as good. */
	mmap(end, page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
}

static void order_touch(long from, long pages, long unused)
{
	struct region *region = current(from, pages);
	long i;

	(void)unused;
	for (i = from; i < from + pages; i++)
		*(volatile char *)(region->at + i * page()) = 1;
}

/* BYTES may be less than none. */
static void order_sbrk(long bytes, long unused, long unused2)
{
	(void)unused, (void)unused2;
	if (leak_sbrk(bytes) == (void *)-1)
		fail("cannot move the break");
	broken += bytes;
	recount();
}

static void order_unmap_all(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	while (count) {
		const struct region *region = &regions[--count];
		long from = 0, to;

		/* What is gone may be another's by now. */
		for (; from < region->pages; from = to) {
			for (to = from + 1; to < region->pages; to++)
				if (region->is[to] != region->is[from])
					break;
			if (region->is[from] != GONE &&
			    munmap(region->at + from * page(), (to - from) * page()))
				fail("cannot unmap");
		}
	}
	recount();
}

/* EXTRA: where the last mapping begins. */
static void order_region(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	extra = (long)current(0, 0)->at;
}

/* EXTRA: how many pages the last mapping is long, with those that are gone. */
static void order_pages(long unused, long unused2, long unused3)
{
	(void)unused, (void)unused2, (void)unused3;
	extra = current(0, 0)->pages;
}

const struct order map_orders[] = {
	{"map", order_map},	    {"map-file", order_map_file}, {"map-fixed", order_map_fixed},
	{"reserve", order_reserve}, {"commit", order_commit},	  {"decommit", order_decommit},
	{"unmap", order_unmap},	    {"block", order_block},	  {"remap", order_remap},
	{"touch", order_touch},	    {"sbrk", order_sbrk},	  {"unmap-all", order_unmap_all},
	{"region", order_region},   {"pages", order_pages},	  {NULL, NULL},
};
