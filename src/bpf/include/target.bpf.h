/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which processes the user asked for: -P, --comm and --cgroup, decided in the
 * kernel. Different criteria are combined with AND, several PIDs with OR.
 * All of it is constant before load, so unused tests are removed by the
 * verifier and cost nothing.
 */
#ifndef MW_TARGET_BPF_H
#define MW_TARGET_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define TARGET_COMM_LEN 16
/* Deeper hierarchies than this are not known to exist; systemd nests 6 to 8. */
#define TARGET_CGROUP_DEPTH 32

const volatile __u32 target_tgids; /* how many PIDs were given; 0: any */
const volatile __u32 target_tgid;  /* the PID, when exactly one was given */
const volatile __u8 target_by_comm;
const volatile __u8 target_comm[TARGET_COMM_LEN]; /* zero-padded */
const volatile __u64 target_cgroup;		  /* id of the cgroup v2 directory; 0: any */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* grown before load when several PIDs are given */
	__type(key, __u32);
	__type(value, __u8);
} target_set SEC(".maps");

static __always_inline bool target_has_tgid(__u32 tgid)
{
	if (target_tgids == 0)
		return true;
	if (target_tgids == 1)
		return tgid == target_tgid;
	return bpf_map_lookup_elem(&target_set, &tgid) != NULL;
}

static __always_inline bool target_has_comm(struct task_struct *leader)
{
	__u8 have[TARGET_COMM_LEN] = {};

	if (!target_by_comm)
		return true;
	if (bpf_core_read(have, sizeof(have), &leader->comm))
		return false;
	/* What follows the terminator is not part of the name. */
	for (int i = 0; i < TARGET_COMM_LEN; i++) {
		__u8 c = have[i];

		if (c != target_comm[i])
			return false;
		if (!c)
			break;
	}
	return true;
}

/*
 * A process belongs to a cgroup if it is in it or in one below it. A function
 * of its own, so that the verifier walks its loop once and not once for each
 * state of the caller (a global function's arguments are scalars before 5.12).
 */
__noinline int target_is_above(__u64 cgroup_addr)
{
	struct cgroup *cgrp = (void *)cgroup_addr;

	for (int i = 0; i < TARGET_CGROUP_DEPTH && cgrp; i++) {
		struct cgroup_subsys_state *parent;

		if (BPF_CORE_READ(cgrp, kn, id) == target_cgroup)
			return 1;
		parent = BPF_CORE_READ(cgrp, self.parent);
		if (!parent)
			break;
		/* self is embedded in its cgroup (include/linux/cgroup-defs.h) */
		cgrp = (void *)parent - bpf_core_field_offset(struct cgroup, self);
	}
	return 0;
}

static __always_inline bool target_has_cgroup(struct task_struct *task)
{
	return !target_cgroup || target_is_above((__u64)BPF_CORE_READ(task, cgroups, dfl_cgrp));
}

/* All criteria, the cheapest first. `leader` is task->group_leader. */
static __always_inline bool target_matches(struct task_struct *task, struct task_struct *leader,
					   __u32 tgid)
{
	return target_has_tgid(tgid) && target_has_comm(leader) && target_has_cgroup(task);
}

#endif /* MW_TARGET_BPF_H */
