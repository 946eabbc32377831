// SPDX-License-Identifier: GPL-2.0-only
/*
 * memleak --kernel: what the kernel allocated and has not freed, by stack.
 *
 * Each block that is alive is an entry of `blocks`, each pair of "what" and
 * stack an entry of `stacks`. A free only removes the block; what a stack holds
 * is summed up by user space, which walks `blocks`. All maps are preallocated,
 * so that nothing here allocates. The programs are raw tracepoints: as cheap as
 * BTF ones, and their arguments are plain numbers on every kernel.
 *
 * Since 6.1 the kernel skips a raw tracepoint program that is running on the CPU
 * already, as when an interrupt came while it ran (05b24ff9b2cf "bpf: Prevent bpf
 * program recursion for raw tracepoint probes"). An RCU callback that frees a
 * hundred objects would go unseen. So each event has two programs: what the first
 * one was skipped for the second one, named with a 2, does.
 *
 * Every way to miss something has its counter: seen = lost + tracked, and
 * tracked = alive + freed + missed.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_DEPTH 127 /* kernel.perf_event_max_stack's default, the most a kernel gives */
#define NAME_LEN 48
#define MAX_BULK 512 /* what kfree_rcu() gathers in a page */
#define EEXIST 17

/* Where a block's address is unique. A slab object may come back through either function. */
#define SPACE_SLAB 1
#define SPACE_PAGES 2
#define SPACE_PERCPU 3
#define SPACE_VMAP 4

/* What it is; `what` of its stack then says more. */
#define KIND_CACHE 1   /* of a slab cache: address of the kmem_cache, or object size */
#define KIND_KMALLOC 2 /* kmalloc: size class in bytes, 0 for more than two pages */
#define KIND_PAGES 3   /* of the page allocator: order */
#define KIND_PERCPU 4  /* of the per-CPU allocator */
#define KIND_VMAP 5    /* kernel address space, memory or not */

/* Bytes; `what` beyond is an address. Caches of bigger objects do not exist (KMALLOC_MAX_SIZE). */
#define MAX_OBJECT (1ULL << 31)

/* Orders at which a block may be given back in parts; MAX_PAGE_ORDER is 10, on arm64 up to 13. */
#define MAX_ORDER_BITS 14

struct leak_key {
	__u64 addr; /* pages: number of the page; else the pointer */
	__u64 space;
};

struct leak_block {
	__u64 stack; /* key in `stacks`; 0: lost */
	__u64 bytes;
	__u64 time_ns;
	__u64 order; /* pages */
};
_Static_assert(sizeof(struct leak_block) == 32, "block layout");

/* Amounts are spread by CPU, so that busy ones do not fight for a line. */
#define STACK_SLOTS 8
#define TOTAL_SLOTS 32

struct leak_amount {
	__u64 bytes;
	__u64 blocks;
};

struct leak_stack {
	struct leak_amount allocated[STACK_SLOTS];
	__u64 what;
	__u32 kind;
	__u32 depth;
	__u8 name[NAME_LEN]; /* of the cache */
	__u64 ips[MAX_DEPTH];
	__u64 pad;
};
_Static_assert(sizeof(struct leak_stack) == 128 + 16 + 48 + 1024, "stack layout");

/* Everything since the start, as user space sums it up. */
struct leak_totals {
	struct leak_amount seen;
	struct leak_amount lost; /* the table was full */
	struct leak_amount freed;
	struct leak_amount missed; /* the address was handed out again without a free */
	struct leak_amount lost_stacks;
	__u64 unknown_frees; /* of blocks that are not in the table */
	__u64 failed_frees;  /* refused by the table: the block stays listed */
	__u64 pad[4];
};
_Static_assert(sizeof(struct leak_totals) == 128, "totals layout");

/* Keep the types in BTF, from which the Rust side is generated. */
const struct leak_key *leak_key_type __attribute__((unused));
const struct leak_block *leak_block_type __attribute__((unused));
const struct leak_stack *leak_stack_type __attribute__((unused));
const struct leak_totals *leak_totals_type __attribute__((unused));

const volatile __u32 self_tgid;	  /* the watcher, whose own allocations are left out */
const volatile __u32 stack_depth; /* at most MAX_DEPTH */
const volatile __u32 page_shift;
const volatile __u32 cpus; /* possible ones: a per-CPU block exists once for each */
const volatile __u64 min_bytes;
const volatile __u64 max_bytes;
const volatile __u8 with_pages; /* large kmalloc blocks are shown as pages, then */
const volatile __u8 by_cache;
const volatile __u8 cache_name[NAME_LEN]; /* zero-padded */
const volatile __u8 by_kmalloc;
const volatile __u64 kmalloc_class; /* as `what` of KIND_KMALLOC */
const volatile __u64 module_from;   /* 0: any code */
const volatile __u64 module_to;

/* Where struct page of page 0 and the kernel's mapping of it would be; 0: not known. */
__u64 page_base;
__u64 direct_base;
__u8 armed; /* allocations count from now on; frees are watched already */

struct leak_totals totals[TOTAL_SLOTS];
__u8 order_seen[MAX_ORDER_BITS]; /* blocks of that order were recorded */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before load */
	__type(key, struct leak_key);
	__type(value, struct leak_block);
} blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before load */
	__type(key, __u64);
	__type(value, struct leak_stack);
} stacks SEC(".maps");

/*
 * Room to capture a stack, for programs that interrupt each other on a CPU. The
 * inner one ends before the outer one goes on, so a buffer found free stays ours
 * even if an interrupt used it between our look and our mark. That is not so
 * where tracepoints can be preempted (7.0 with PREEMPT_RT): hence the token, see leave().
 */
#define LEVELS 4
#define SPOILT 1

struct room {
	__u64 busy; /* token of whoever uses it, 0: nobody */
	struct leak_stack stack;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LEVELS);
	__type(key, __u32);
	__type(value, struct room);
} rooms SEC(".maps");

static __always_inline struct leak_totals *my_totals(void)
{
	return &totals[bpf_get_smp_processor_id() % TOTAL_SLOTS];
}

/* The result is unused: plain XADD, which every kernel from 5.8 has. */
static __always_inline void add(struct leak_amount *amount, __u64 bytes)
{
	__sync_fetch_and_add(&amount->bytes, bytes);
	__sync_fetch_and_add(&amount->blocks, 1);
}

static __always_inline bool same_stack(struct leak_stack *a, struct leak_stack *b)
{
	if (a->kind != b->kind || a->what != b->what || a->depth != b->depth)
		return false;
	for (__u32 i = 0; i < MAX_DEPTH; i++) {
		if (i >= a->depth)
			break;
		if (a->ips[i] != b->ips[i])
			return false;
	}
	return true;
}

/*
 * Finds or makes the entry of the stack in that room, adds the block to it and
 * returns its key; 0 when there is no place for it. A function of its own, so
 * that the verifier walks its loops once (a global function's arguments are
 * scalars before 5.12).
 */
__noinline __u64 keep_stack(__u32 level, __u64 bytes)
{
	struct room *room = bpf_map_lookup_elem(&rooms, &level);
	struct leak_stack *mine, *entry;
	__u64 hash;

	if (!room)
		return 0;
	mine = &room->stack;
	hash = mine->what ^ ((__u64)mine->kind << 56);
	for (__u32 i = 0; i < MAX_DEPTH; i++) {
		if (i >= mine->depth)
			break;
		hash = (hash ^ mine->ips[i]) * 0x9E3779B97F4A7C15ULL;
		hash ^= hash >> 32;
	}
	for (int try = 0; try < 4; try++) {
		__u64 key = hash + try;

		if (!key)
			continue; /* means "lost" */
		entry = bpf_map_lookup_elem(&stacks, &key);
		if (!entry) {
			int err; /* see remember() */

			__builtin_memset(mine->name, 0, sizeof(mine->name));
			if (mine->kind == KIND_CACHE && mine->what > MAX_OBJECT) {
				struct kmem_cache *cache = (void *)mine->what;

				bpf_probe_read_kernel_str(mine->name, sizeof(mine->name),
							  BPF_CORE_READ(cache, name));
			}
			err = bpf_map_update_elem(&stacks, &key, mine, BPF_NOEXIST);
			if (err && err != -EEXIST)
				return 0;
			/* Another CPU may have been first, with this stack or not. */
			entry = bpf_map_lookup_elem(&stacks, &key);
		}
		if (entry && same_stack(mine, entry)) {
			add(&entry->allocated[bpf_get_smp_processor_id() % STACK_SLOTS], bytes);
			return key;
		}
	}
	return 0;
}

/* Whether the stack in that room passes through the module. */
__noinline int passes_module(__u32 level)
{
	struct room *room = bpf_map_lookup_elem(&rooms, &level);

	if (!room)
		return 0;
	for (__u32 i = 0; i < MAX_DEPTH; i++) {
		if (i >= room->stack.depth)
			break;
		if (room->stack.ips[i] >= module_from && room->stack.ips[i] < module_to)
			return 1;
	}
	return 0;
}

static __always_inline void remember(struct leak_totals *mine, struct leak_key *key,
				     struct leak_block *block)
{
	/*
	 * An int: until 6.3 the function behind it returns one, and the upper half
	 * of the register is not its sign (d7ba4cc900bf "bpf: return long from
	 * bpf_map_ops funcs").
	 */
	int err = bpf_map_update_elem(&blocks, key, block, BPF_NOEXIST);
	__u64 old_bytes = 0;
	bool again = false;

	if (err == -EEXIST) {
		struct leak_block *old = bpf_map_lookup_elem(&blocks, key);

		if (old) {
			old_bytes = old->bytes;
			again = true;
		}
		err = bpf_map_update_elem(&blocks, key, block, BPF_ANY);
	}
	if (err)
		add(&mine->lost, block->bytes);
	else if (again)
		add(&mine->missed, old_bytes);
}

/*
 * The buffer is ours again if nobody took it meanwhile. Otherwise what is in it
 * may be neither's: we have lost our stack, and whoever has the buffer now will
 * find it spoilt.
 */
static __always_inline bool leave(struct room *room, __u64 token)
{
	__u64 busy = *(volatile __u64 *)&room->busy;

	if (busy == token || busy == SPOILT)
		room->busy = 0;
	else if (busy)
		room->busy = SPOILT;
	return busy == token;
}

/* The block that a first program saw allocated last. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct leak_key);
} last SEC(".maps");

static __always_inline void mark_last(struct leak_key *key)
{
	__u32 zero = 0;
	struct leak_key *mine = bpf_map_lookup_elem(&last, &zero);

	if (mine)
		*mine = *key;
}

/*
 * Whether the first program has seen this allocation. Its mark alone may be
 * another's, made by an interrupt between the two programs; the table alone does
 * not have a block that was lost.
 */
static __always_inline bool was_seen(struct leak_key *key)
{
	__u32 zero = 0;
	struct leak_key *mine = bpf_map_lookup_elem(&last, &zero);

	if (mine && mine->addr == key->addr && mine->space == key->space)
		return true;
	return bpf_map_lookup_elem(&blocks, key) != NULL;
}

/* `second`: called by the second program of the event. */
static __always_inline int on_alloc(void *ctx, struct leak_key *key, __u64 bytes, __u32 kind,
				    __u64 what, const bool second)
{
	struct leak_block block = {.bytes = bytes};
	struct leak_totals *mine;
	struct room *room = NULL;
	__u64 id, token;
	__u32 level = 0;

	if (!armed || bytes < min_bytes || bytes > max_bytes)
		return 0;
	id = bpf_get_current_pid_tgid();
	if (id >> 32 == self_tgid)
		return 0;
	if (!second)
		mark_last(key);
	else if (was_seen(key))
		return 0;
	mine = my_totals();
	block.time_ns = bpf_ktime_get_ns();
	if (kind == KIND_PAGES)
		block.order = what;
	token = ((block.time_ns << 16) ^ id) | 2;

	for (__u32 i = 0; i < LEVELS; i++) {
		__u32 at = i;

		room = bpf_map_lookup_elem(&rooms, &at);
		if (!room)
			break;
		if (!room->busy) {
			level = at;
			break;
		}
		room = NULL;
	}
	if (room) {
		struct leak_stack *stack = &room->stack;
		__u32 size = stack_depth * sizeof(__u64);
		long got;

		*(volatile __u64 *)&room->busy = token;
		if (size > sizeof(stack->ips))
			size = sizeof(stack->ips);
		got = bpf_get_stack(ctx, stack->ips, size, 0);
		if (got > 0) {
			stack->kind = kind;
			stack->what = what;
			stack->depth = got / sizeof(__u64);
			if (module_from && !passes_module(level)) {
				leave(room, token);
				return 0;
			}
			block.stack = keep_stack(level, bytes);
		}
		if (!leave(room, token))
			block.stack = 0;
	}
	add(&mine->seen, bytes);
	if (!block.stack)
		add(&mine->lost_stacks, bytes);
	remember(mine, key, &block);
	return 0;
}

static __always_inline int on_free(__u32 space, __u64 addr, const bool second)
{
	struct leak_key key = {.addr = addr, .space = space};
	struct leak_block *block = bpf_map_lookup_elem(&blocks, &key);
	struct leak_totals *mine = my_totals();
	__u64 bytes;

	if (!block) {
		/* For the second program: the first one has done it. */
		if (!second)
			__sync_fetch_and_add(&mine->unknown_frees, 1);
		return 0;
	}
	/* Copied before it is deleted: after that the entry may be another's. */
	bytes = block->bytes;
	if (bpf_map_delete_elem(&blocks, &key))
		__sync_fetch_and_add(&mine->failed_frees, 1);
	else
		add(&mine->freed, bytes);
	return 0;
}

/*
 * Argument `n` of the tracepoint. In assembly, because a compiler that loads one
 * of two arguments by a computed offset makes a program the verifier refuses.
 */
#define ARG(ctx, n)                                                                                \
	({                                                                                         \
		__u64 __value;                                                                     \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(__value) : "r"(ctx), "i"((n)*8));     \
		__value;                                                                           \
	})

/* --- slab --- */

/*
 * A kernel pointer to no object: failed, or of no size. ZERO_SIZE_PTR is 16
 * (include/linux/slab.h).
 */
static __always_inline bool is_nothing(__u64 ptr)
{
	return ptr <= 16;
}

/*
 * <= 5.19: the event does not name the cache, but the page of the object does.
 * Where the page is known through its number and the two bases (src/leak/kernel.rs).
 */
static __always_inline __u64 cache_of(__u64 ptr)
{
	void *page;

	if (!page_base || !direct_base || ptr < direct_base)
		return 0;
	page = (void *)page_base +
	       ((ptr - direct_base) >> page_shift) * bpf_core_type_size(struct page);
	return (__u64)cache_of_page(page);
}

static __always_inline bool is_wanted_cache(__u64 cache)
{
	__u8 have[NAME_LEN] = {};
	struct kmem_cache *s = (void *)cache;

	if (!cache)
		return false;
	bpf_probe_read_kernel_str(have, sizeof(have), BPF_CORE_READ(s, name));
	for (int i = 0; i < NAME_LEN; i++) {
		__u8 c = have[i];

		if (c != cache_name[i])
			return false;
		if (!c)
			break;
	}
	return true;
}

static __always_inline int take_object(__u64 *ctx, const bool second)
{
	struct leak_key key = {.space = SPACE_SLAB};
	__u64 ptr = ARG(ctx, 1), cache, bytes;

	if (is_nothing(ptr))
		return 0;
	if (!alloc_events_share_a_class()) {
		cache = ARG(ctx, 2);
		bytes = BPF_CORE_READ((struct kmem_cache *)cache, size);
	} else if (alloc_events_have_cache()) {
		cache = ARG(ctx, 2);
		bytes = ARG(ctx, 4);
	} else {
		cache = cache_of(ptr);
		bytes = ARG(ctx, 3);
	}
	if (by_kmalloc || (by_cache && !is_wanted_cache(cache)))
		return 0;
	key.addr = ptr;
	return on_alloc(ctx, &key, bytes, KIND_CACHE, cache ? cache : bytes, second);
}

static __always_inline int take_kmalloc(__u64 *ctx, const bool second)
{
	struct leak_key key = {.addr = ARG(ctx, 1), .space = SPACE_SLAB};
	__u64 bytes, what;

	if (is_nothing(key.addr) || by_cache)
		return 0;
	if (alloc_events_share_a_class() && alloc_events_have_cache())
		bytes = ARG(ctx, 4);
	else
		bytes = ARG(ctx, 3);
	what = bytes;
	/* SLUB takes blocks of more than two pages right from the page allocator. */
	if (bytes > 2ULL << page_shift && !allocator_is_slab()) {
		if (with_pages)
			return 0;
		what = 0;
	}
	if (by_kmalloc && what != kmalloc_class)
		return 0;
	return on_alloc(ctx, &key, bytes, KIND_KMALLOC, what, second);
}

SEC("raw_tp/kmem_cache_alloc")
int cache_alloc(__u64 *ctx)
{
	return take_object(ctx, false);
}

SEC("raw_tp/kmem_cache_alloc")
int cache_alloc2(__u64 *ctx)
{
	return take_object(ctx, true);
}

/* <= 6.0 */
SEC("raw_tp/kmem_cache_alloc_node")
int cache_alloc_nod(__u64 *ctx)
{
	return take_object(ctx, false);
}

SEC("raw_tp/kmalloc")
int kmalloc_alloc(__u64 *ctx)
{
	return take_kmalloc(ctx, false);
}

SEC("raw_tp/kmalloc")
int kmalloc_alloc2(__u64 *ctx)
{
	return take_kmalloc(ctx, true);
}

/* <= 6.0 */
SEC("raw_tp/kmalloc_node")
int kmalloc_alloc_n(__u64 *ctx)
{
	return take_kmalloc(ctx, false);
}

static __always_inline int free_object(__u64 ptr, const bool second)
{
	return is_nothing(ptr) ? 0 : on_free(SPACE_SLAB, ptr, second);
}

SEC("raw_tp/kfree")
int kmalloc_free(__u64 *ctx)
{
	return free_object(ARG(ctx, 1), false);
}

SEC("raw_tp/kfree")
int kmalloc_free2(__u64 *ctx)
{
	return free_object(ARG(ctx, 1), true);
}

SEC("raw_tp/kmem_cache_free")
int cache_free(__u64 *ctx)
{
	return free_object(ARG(ctx, 1), false);
}

SEC("raw_tp/kmem_cache_free")
int cache_free2(__u64 *ctx)
{
	return free_object(ARG(ctx, 1), true);
}

/*
 * kfree_rcu() has no tracepoint: the objects go back in bulk, or since 6.18 in
 * sheaves. The second argument is the pointer; before 6.3 it is that only where
 * the first one is NULL, else the offset of `head` in the object, less than a
 * page (04a522b7da3d "rcu: Refactor kvfree_call_rcu() and high-level helpers").
 */
SEC("fentry/kvfree_call_rcu")
int rcu_free(__u64 *ctx)
{
	__u64 args[2]; /* head, ptr */

	/* Read as plain numbers: 5.10 refuses arguments that point to functions. */
	if (bpf_probe_read_kernel(args, sizeof(args), ctx))
		return 0;
	return free_object(args[1] < 4096 ? args[0] - args[1] : args[1], false);
}

/*
 * Nor has the freeing of many objects at once. What kfree_rcu() announced above
 * comes by here again, and counts as unknown then.
 */
SEC("fentry/kmem_cache_free_bulk")
int bulk_free(__u64 *ctx)
{
	__u64 args[3]; /* cache, number, objects */

	if (bpf_probe_read_kernel(args, sizeof(args), ctx))
		return 0;
	for (int i = 0; i < MAX_BULK; i++) {
		__u64 ptr;

		if (i >= args[1])
			return 0;
		if (bpf_probe_read_kernel(&ptr, sizeof(ptr), (__u64 *)args[2] + i))
			return 0;
		free_object(ptr, false);
	}
	return 0;
}

/* --- pages --- */

static __always_inline __u64 page_number(__u64 page)
{
	return (page - page_base) / bpf_core_type_size(struct page);
}

static __always_inline int take_pages(__u64 *ctx, const bool second)
{
	struct leak_key key = {.space = SPACE_PAGES};
	__u64 page = ARG(ctx, 0), order = (__u32)ARG(ctx, 1);

	if (!page)
		return 0;
	key.addr = page_number(page);
	if (order < MAX_ORDER_BITS && !order_seen[order])
		order_seen[order] = 1;
	return on_alloc(ctx, &key, 1ULL << (page_shift + (order & 31)), KIND_PAGES, order, second);
}

SEC("raw_tp/mm_page_alloc")
int page_alloc(__u64 *ctx)
{
	return take_pages(ctx, false);
}

SEC("raw_tp/mm_page_alloc")
int page_alloc2(__u64 *ctx)
{
	return take_pages(ctx, true);
}

/* A part of a block that was split (split_page(), a split huge page). */
static __always_inline int free_part(struct leak_key *key, __u64 bytes)
{
	struct leak_block *block = bpf_map_lookup_elem(&blocks, key);
	struct leak_totals *mine = my_totals();

	if (!block)
		return 0;
	__sync_fetch_and_add(&block->bytes, -bytes);
	__sync_fetch_and_add(&mine->freed.bytes, bytes);
	/* Two may find nothing left; the block goes but once. */
	if (!*(volatile __u64 *)&block->bytes && !bpf_map_delete_elem(&blocks, key))
		__sync_fetch_and_add(&mine->freed.blocks, 1);
	return 0;
}

static __always_inline int free_pages(__u64 *ctx, const bool second)
{
	struct leak_key key = {.space = SPACE_PAGES};
	__u64 number = page_number(ARG(ctx, 0)), order = (__u32)ARG(ctx, 1);
	__u64 bytes = 1ULL << (page_shift + (order & 31));
	struct leak_block *block;

	key.addr = number;
	block = bpf_map_lookup_elem(&blocks, &key);
	if (block) {
		if (block->order > order)
			return second ? 0 : free_part(&key, bytes);
		return on_free(SPACE_PAGES, number, second);
	}
	/* To take the same part twice would be wrong, to take a whole is not possible. */
	if (second)
		return 0;
	for (__u32 above = 1; above < MAX_ORDER_BITS; above++) {
		if (above <= order || !order_seen[above])
			continue;
		key.addr = number & ~((1ULL << above) - 1);
		block = bpf_map_lookup_elem(&blocks, &key);
		if (block && block->order >= above)
			return free_part(&key, bytes);
	}
	__sync_fetch_and_add(&my_totals()->unknown_frees, 1);
	return 0;
}

/* mm_page_free_batched comes in addition to it, not instead. */
SEC("raw_tp/mm_page_free")
int page_free(__u64 *ctx)
{
	return free_pages(ctx, false);
}

SEC("raw_tp/mm_page_free")
int page_free2(__u64 *ctx)
{
	return free_pages(ctx, true);
}

/* --- per-CPU memory --- */

static __always_inline int take_percpu(__u64 *ctx, const bool second)
{
	struct leak_key key = {.space = SPACE_PERCPU};
	__u64 bytes;

	if (percpu_event_has_call_site()) {
		key.addr = ARG(ctx, 7);
		bytes = ARG(ctx, 3);
	} else {
		key.addr = ARG(ctx, 6);
		bytes = ARG(ctx, 2);
	}
	return on_alloc(ctx, &key, bytes * cpus, KIND_PERCPU, 0, second);
}

SEC("raw_tp/percpu_alloc_percpu")
int percpu_alloc(__u64 *ctx)
{
	return take_percpu(ctx, false);
}

SEC("raw_tp/percpu_alloc_percpu")
int percpu_alloc2(__u64 *ctx)
{
	return take_percpu(ctx, true);
}

SEC("raw_tp/percpu_free_percpu")
int percpu_free(__u64 *ctx)
{
	return on_free(SPACE_PERCPU, ARG(ctx, 2), false);
}

SEC("raw_tp/percpu_free_percpu")
int percpu_free2(__u64 *ctx)
{
	return on_free(SPACE_PERCPU, ARG(ctx, 2), true);
}

/* --- kernel address space --- */

/* >= 6.2. User space tells vmalloc() from the mapping of other memory by the stack. */
static __always_inline int take_area(__u64 *ctx, const bool second)
{
	struct leak_key key = {.addr = ARG(ctx, 0), .space = SPACE_VMAP};
	__u64 bytes = ARG(ctx, 1), page = 1ULL << page_shift;

	if ((__u32)ARG(ctx, 5))
		return 0; /* failed */
	/* An area ends with a page that is never mapped (__get_vm_area_node()). */
	return on_alloc(ctx, &key, bytes > page ? bytes - page : bytes, KIND_VMAP, 0, second);
}

SEC("raw_tp/alloc_vmap_area")
int vmap_alloc(__u64 *ctx)
{
	return take_area(ctx, false);
}

SEC("raw_tp/alloc_vmap_area")
int vmap_alloc2(__u64 *ctx)
{
	return take_area(ctx, true);
}

SEC("raw_tp/free_vmap_area_noflush")
int vmap_free(__u64 *ctx)
{
	return on_free(SPACE_VMAP, ARG(ctx, 0), false);
}

SEC("raw_tp/free_vmap_area_noflush")
int vmap_free2(__u64 *ctx)
{
	return on_free(SPACE_VMAP, ARG(ctx, 0), true);
}

/* --- where the kernel keeps things, learnt from allocations of our own --- */

#define LEARNT 64

__u64 learnt_pages[LEARNT]; /* struct page of what the watcher was given, newest last */
__u32 learnt_orders[LEARNT];
__u32 learnt;	    /* how many, counted beyond LEARNT */
__u64 learnt_block; /* a large kmalloc block ... */
__u64 learnt_bytes; /* ... and its size */
__u64 page_struct_bytes;

SEC("raw_tp/mm_page_alloc")
int learn_page(__u64 *ctx)
{
	__u32 at = learnt;

	if (!ARG(ctx, 0) || bpf_get_current_pid_tgid() >> 32 != self_tgid)
		return 0;
	page_struct_bytes = bpf_core_type_size(struct page);
	if (at < LEARNT) {
		learnt_pages[at] = ARG(ctx, 0);
		learnt_orders[at] = ARG(ctx, 1);
	}
	learnt = at + 1;
	return 0;
}

SEC("raw_tp/kmalloc")
int learn_block(__u64 *ctx)
{
	__u64 bytes = alloc_events_share_a_class() && alloc_events_have_cache() ? ARG(ctx, 4)
										: ARG(ctx, 3);

	if (bytes <= 2ULL << page_shift || bpf_get_current_pid_tgid() >> 32 != self_tgid)
		return 0;
	learnt_block = ARG(ctx, 1);
	learnt_bytes = bytes;
	return 0;
}
