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
/* They are compared in blocks of so many addresses. */
#define STACK_BLOCK 8
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
	struct amount seen[STACK_SLOTS];      /* everything allocated here, freed or not */
	__u64 ips[STACK_DEPTH + STACK_BLOCK]; /* innermost first */
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
 * How many addresses a stack has. Those behind are 0 up to the end of a block:
 * blocks are compared as a whole, which is quicker, and much quicker to verify.
 */
static __always_inline void stack_end(struct stack *s, __u32 depth)
{
	depth &= STACK_DEPTH; /* it is no more, but now the verifier knows */
	s->depth = depth;
	for (int i = 0; i < STACK_BLOCK; i++)
		s->ips[depth + i] = 0;
}

static __noinline __u64 stack_hash(const struct stack *s)
{
	__u64 hash = s->owner ^ s->depth;

	for (int i = 0; i < STACK_DEPTH; i += STACK_BLOCK) {
		if (i >= s->depth)
			break;
		/* the 64-bit finalizer of MurmurHash3, one round an address */
		for (int j = i; j < i + STACK_BLOCK; j++) {
			hash = (hash ^ s->ips[j]) * 0xff51afd7ed558ccdULL;
			hash ^= hash >> 32;
		}
	}
	return hash;
}

static __noinline bool stack_equal(const struct stack *a, const struct stack *b)
{
	__u64 different = (a->owner ^ b->owner) | (a->depth ^ b->depth);

	for (int i = 0; i < STACK_DEPTH; i += STACK_BLOCK) {
		if (i >= b->depth)
			break;
		for (int j = i; j < i + STACK_BLOCK; j++)
			different |= a->ips[j] ^ b->ips[j];
	}
	return !different;
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
 * The id of a stack whose counters now include `bytes`; 0 if there is no room,
 * and then `stackless` includes them. `s->seen` must be zero.
 */
static __always_inline __u64 stack_count(const struct stack *s, __u64 bytes)
{
	__u64 id = stack_hash(s);

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
		if (stack_equal(known, s)) {
			amount_add(known->seen, bytes);
			return id;
		}
	}
	amount_add(stackless, bytes);
	return 0;
}

#endif /* MW_STACK_BPF_H */
