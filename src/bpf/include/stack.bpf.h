/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Call stacks as identities. A stack is known by all of its addresses: the id
 * is a hash that only says where to look, and two stacks of one hash get two
 * ids. Nothing is evicted; what finds no place is counted by the caller.
 */
#ifndef MW_STACK_BPF_H
#define MW_STACK_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* What perf_event_max_stack allows without being raised. */
#define STACK_DEPTH 127
/* Counters of one stack, spread over CPUs so that they seldom share a line. */
#define STACK_SLOTS 8
/* How many ids are tried for stacks whose hashes are equal. */
#define STACK_TRIES 4

struct amount {
	__u64 bytes;
	__u64 blocks;
};

struct stack {
	__u64 owner; /* process, as the tool numbers them; part of the identity */
	__u32 depth; /* addresses in use */
	__u32 pad;
	struct amount seen[STACK_SLOTS]; /* everything allocated here, freed or not */
	__u64 ips[STACK_DEPTH];		 /* innermost first */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* --max-stacks changes it before load */
	__type(key, __u64);
	__type(value, struct stack);
} stacks SEC(".maps");

/* What could be given no stack: the table was full, or none was asked for. */
struct amount stackless[STACK_SLOTS];

/*
 * The stack that is being looked at; NULL: there is none. Defined by the program
 * that includes this.
 */
static __always_inline struct stack *stack_in_hand(void);

/*
 * The loops over a stack's addresses are global functions, which the verifier
 * walks once and not once for each state of each caller. Those take only
 * numbers before 5.12, so they find the stack again by themselves.
 */
__noinline __u64 stack_hash(void)
{
	const struct stack *s = stack_in_hand();
	__u64 hash;

	if (!s)
		return 0;
	hash = s->owner ^ s->depth;
	for (int i = 0; i < STACK_DEPTH; i++) {
		if (i >= s->depth)
			break;
		/* the 64-bit finalizer of MurmurHash3, one round an address */
		hash = (hash ^ s->ips[i]) * 0xff51afd7ed558ccdULL;
		hash ^= hash >> 32;
	}
	return hash;
}

/* Whether the stack in hand is the one of this id. */
__noinline int stack_is(__u64 id)
{
	const struct stack *a = stack_in_hand(), *b = bpf_map_lookup_elem(&stacks, &id);

	if (!a || !b || a->owner != b->owner || a->depth != b->depth)
		return 0;
	for (int i = 0; i < STACK_DEPTH; i++) {
		if (i >= a->depth)
			break;
		if (a->ips[i] != b->ips[i])
			return 0;
	}
	return 1;
}

static __always_inline void amount_add(struct amount *slots, __u64 bytes)
{
	__u32 slot = bpf_get_smp_processor_id() % STACK_SLOTS;

	/* adding a constant 0 becomes an atomic "or", which came with 5.12 */
	if (bytes)
		__sync_fetch_and_add(&slots[slot].bytes, bytes);
	__sync_fetch_and_add(&slots[slot].blocks, 1);
}

/*
 * The id of the stack in hand, `s`, whose counters now include `bytes`; 0 if there is no room,
 * and then `stackless` includes them. `s->seen` must be zero.
 */
static __always_inline __u64 stack_count(const struct stack *s, __u64 bytes)
{
	__u64 id = stack_hash();

	for (int try = 0; try < STACK_TRIES; try++) {
		struct stack *known;

		if (!++id)
			id = 1; /* 0 means none */
		known = bpf_map_lookup_elem(&stacks, &id);
		if (!known) {
			/* Another CPU may be first: what counts is what is there then. */
			bpf_map_update_elem(&stacks, &id, s, BPF_NOEXIST);
			known = bpf_map_lookup_elem(&stacks, &id);
			if (!known)
				break; /* full */
		}
		if (stack_is(id)) {
			amount_add(known->seen, bytes);
			return id;
		}
	}
	amount_add(stackless, bytes);
	return 0;
}

#endif /* MW_STACK_BPF_H */
