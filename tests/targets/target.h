/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of a target program share. A target obeys one order a line on its standard input
 * and answers each with what it then holds, so that a test can compare exactly. It reads and writes
 * without buffers: at rest it has allocated nothing but what it was told to.
 */
#ifndef TARGET_H
#define TARGET_H

#include <stddef.h>

#ifdef PREFIXED
#include "arena.h"
#endif

/* Functions a test looks for in stacks: never inlined, cloned or specialised. */
#define NAMED __attribute__((noinline, noipa))

/* Keeps a call from becoming a jump, which would leave its caller out of the stack. */
#define KEEP_FRAME(result) __asm__ volatile("" : "+r"(result))

#ifdef __cplusplus
extern "C" {
#endif

/* What is held now; `seen` is everything allocated since the start. */
struct account {
	size_t bytes, blocks;
	size_t seen_bytes, seen_blocks;
	size_t map_bytes, file_bytes, reserved_bytes;
};

extern struct account account;

/* A number that an order answers besides. */
extern long extra;

struct order {
	const char *name;
	void (*obey)(long a, long b, long c);
};

/* The lists end with a null name. That of the C++ target may be absent. */
extern const struct order heap_orders[], thread_orders[], map_orders[], process_orders[];
extern const struct order cxx_orders[] __attribute__((weak));

/* Answers an error instead, and ends the program. */
void __attribute__((noreturn)) fail(const char *why);

/* Takes a new block into the account; null is a failure. */
void keep(void *block, size_t bytes, void (*release)(void *, size_t));

/* Fails unless what an allocator refused is null. */
void refused(const void *block);

/* Counts a block in `account`, or counts it out. */
void count_in(size_t bytes);
void count_out(size_t bytes);

/* Ways to free a block. */
void release_free(void *block, size_t bytes);

void free_all_of_threads(void);
void free_inherited(void);

/* Threads that run beside the one that obeys. */
int threads_running(void);

#ifdef __cplusplus
}
#endif

#endif
