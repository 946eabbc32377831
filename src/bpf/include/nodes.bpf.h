/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The way to the memory nodes. Any one node leads to all zones of all nodes
 * through its zonelist, so one address is enough.
 */
#ifndef MW_NODES_BPF_H
#define MW_NODES_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* More zones than any machine has; bounds the walk for the verifier. */
#define MAX_ZONES 1024

/* How many zones there can be: the verifier walks the loop as often as this says. */
const volatile __u32 zone_slots;

/*
 * Address of the kernel's array node_data, from kallsyms. Not an extern: that
 * would have the loader read all of kallsyms whichever way is used.
 */
const volatile __u64 node_data_addr;

__u64 first_node; /* address of some pglist_data, once learnt */

static __always_inline void node_learn(struct pglist_data *pgdat)
{
	if (pgdat && !first_node)
		first_node = (__u64)pgdat;
}

/* Any memory cgroup knows the nodes; the caller's is at hand. */
static __always_inline void node_learn_of_memcg(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	int subsys = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	struct cgroup_subsys_state *css;
	struct mem_cgroup *memcg;

	css = BPF_CORE_READ(task, cgroups, subsys[subsys]);
	if (!css)
		return;
	memcg = (void *)css - bpf_core_field_offset(struct mem_cgroup, css);
	for (int nid = 0; nid < 8; nid++) { /* node 0 can be absent */
		struct mem_cgroup_per_node *pn = BPF_CORE_READ(memcg, nodeinfo[nid]);

		if (pn) {
			node_learn(BPF_CORE_READ(pn, lruvec.pgdat));
			return;
		}
	}
}

static __always_inline void node_learn_of_symbol(void)
{
	struct pglist_data *pgdat = NULL;

	for (int nid = 0; nid < 8 && !pgdat; nid++)
		bpf_probe_read_kernel(&pgdat, sizeof(pgdat),
				      (void *)(node_data_addr + nid * sizeof(pgdat)));
	node_learn(pgdat);
}

/* The zone at a place of the first node's zonelist; NULL behind the last one. */
static __always_inline struct zone *zone_at(__u32 place)
{
	struct pglist_data *first = (void *)first_node;

	return BPF_CORE_READ(first, node_zonelists[0]._zonerefs[place].zone);
}

#endif /* MW_NODES_BPF_H */
