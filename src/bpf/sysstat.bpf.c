// SPDX-License-Identifier: GPL-2.0-only
/*
 * sysstat: every node's own memory counters.
 *
 * The counters live in each node's pglist_data and zones. One pglist_data
 * leads to all others through its zonelist; `learn_*` find that first one in
 * three ways, and `read_nodes`, run from user space at each interval, copies
 * the counters of all nodes. Nothing stays attached to the allocation path.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "nodes.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* 7.2 has 67 node items and 13 zone items; names are resolved in user space. */
#define NODE_ITEMS 128
#define ZONE_ITEMS 64

/*
 * Only the first items of an array are written, as many as this kernel has.
 * `round` tells a fresh copy from the leftover of a node that was removed.
 */
struct sysstat_node {
	__s64 stat[NODE_ITEMS]; /* pglist_data.vm_stat, each in its item's unit */
	__u64 round;
};

struct sysstat_zone {
	__s64 stat[ZONE_ITEMS]; /* zone.vm_stat */
	__u64 round;
	__u32 nid;
	__u32 pad;
};

const struct sysstat_node *sysstat_node_type __attribute__((unused));
const struct sysstat_zone *sysstat_zone_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* possible nodes, set before load */
	__type(key, __u32);
	__type(value, struct sysstat_node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8); /* zones the possible nodes can have, set before load */
	__type(key, __u32);
	__type(value, struct sysstat_zone);
} zones SEC(".maps");

__u64 rounds; /* readings done */

SEC("fentry/get_page_from_freelist")
int BPF_PROG(learn_fentry, gfp_t gfp, unsigned int order, int alloc_flags,
	     const struct alloc_context *ac)
{
	if (!first_node)
		node_learn(BPF_CORE_READ(ac, preferred_zoneref, zone, zone_pgdat));
	return 0;
}

SEC("kprobe/get_page_from_freelist")
int BPF_KPROBE(learn_kprobe, gfp_t gfp, unsigned int order, int alloc_flags,
	       const struct alloc_context *ac)
{
	if (!first_node)
		node_learn(BPF_CORE_READ(ac, preferred_zoneref, zone, zone_pgdat));
	return 0;
}

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

/* A size the verifier can bound: the kernel's array, or ours if that is smaller. */
#define COPY_SIZE(field, buffer)                                                                   \
	(bpf_core_field_size(field) < sizeof(buffer) ? bpf_core_field_size(field) : sizeof(buffer))

SEC("raw_tp")
int read_nodes(void *ctx)
{
	__u64 now = rounds + 1;

	if (!first_node)
		return 0;
	for (__u32 i = 0; i < MAX_ZONES && i < zone_slots; i++) {
		struct pglist_data *pgdat;
		struct sysstat_zone *z;
		struct sysstat_node *n;
		struct zone *zone;
		__u32 slot = i; /* a loop counter whose address is taken is not bounded */

		zone = zone_at(i);
		if (!zone)
			break;
		z = bpf_map_lookup_elem(&zones, &slot);
		if (!z)
			break;
		pgdat = BPF_CORE_READ(zone, zone_pgdat);
		z->nid = BPF_CORE_READ(pgdat, node_id);
		z->round = now;
		bpf_core_read(z->stat, COPY_SIZE(zone->vm_stat, z->stat), &zone->vm_stat);
		n = bpf_map_lookup_elem(&nodes, &z->nid);
		if (!n || n->round == now)
			continue;
		n->round = now;
		bpf_core_read(n->stat, COPY_SIZE(pgdat->vm_stat, n->stat), &pgdat->vm_stat);
	}
	rounds = now;
	return 0;
}
