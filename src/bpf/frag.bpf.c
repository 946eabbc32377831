// SPDX-License-Identifier: GPL-2.0-only
/*
 * frag: the free blocks of every zone, order by order. Nothing is attached:
 * user space runs `read_zones` at each interval.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "nodes.bpf.h"
#include "zones.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* `round` tells a fresh copy from the leftover of a zone that was removed. */
struct frag_zone {
	struct zone_state state;
	__u64 round;
};
_Static_assert(sizeof(struct frag_zone) == 232, "value layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct frag_zone *frag_zone_type __attribute__((unused));

/* In the order of the first node's zonelist. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8); /* zones the possible nodes can have, set before load */
	__type(key, __u32);
	__type(value, struct frag_zone);
} zones SEC(".maps");

__u64 rounds; /* readings done */

SEC("raw_tp")
int learn_memcg(void *ctx)
{
	node_learn_of_memcg();
	return 0;
}

SEC("raw_tp")
int learn_ksym(void *ctx)
{
	node_learn_of_symbol();
	return 0;
}

SEC("raw_tp")
int read_zones(void *ctx)
{
	__u64 now = rounds + 1;

	if (!first_node)
		return 0;
	for (__u32 i = 0; i < MAX_ZONES && i < zone_slots; i++) {
		struct frag_zone *z;
		struct zone *zone;
		__u32 slot = i; /* a loop counter whose address is taken is not bounded */

		zone = zone_at(i);
		if (!zone)
			break;
		z = bpf_map_lookup_elem(&zones, &slot);
		if (!z)
			break;
		zone_read(zone, &z->state);
		z->round = now;
	}
	rounds = now;
	return 0;
}
