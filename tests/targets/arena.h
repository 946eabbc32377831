/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An allocator of the program's own, under names of its own, in a mapping of its own: what
 * --symbol-prefix is for, and, with USDT, what the probes otel_memory:alloc and otel_memory:free
 * are for.
 */
#ifndef ARENA_H
#define ARENA_H

#include <malloc.h>
#include <stddef.h>
#include <stdlib.h>

void *my_malloc(size_t bytes);
void *my_calloc(size_t count, size_t bytes);
void *my_realloc(void *block, size_t bytes);
void *my_memalign(size_t alignment, size_t bytes);
void my_free(void *block);

#define malloc my_malloc
#define calloc my_calloc
#define realloc my_realloc
#define memalign my_memalign
#define free my_free

#endif
