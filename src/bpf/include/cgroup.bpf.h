/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Cgroups by id, and by name where they may be gone when somebody asks. They are
 * those of one hierarchy, the one with the memory controller: v2 on most machines,
 * v1 on some. An id is the inode number of the folder there (src/cgroups.rs).
 */
#ifndef MW_CGROUP_BPF_H
#define MW_CGROUP_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "compat.bpf.h"

#define CGROUP_BYTES 512 /* a power of two */
#define CGROUP_NAME 256	 /* NAME_MAX and the terminator */
#define CGROUP_DEPTH 32	 /* as deep as target.bpf.h looks */

#define CGROUP_CUT 4u /* there is more, nearer to the root (PATH_CUT of path.bpf.h) */

/* From the cgroup to the root, which has no name; each with its terminator. */
struct cgroup_names {
	__u32 bytes; /* of `names` in use */
	__u32 flags;
	__u8 names[CGROUP_BYTES + CGROUP_NAME];
};

/* The cgroup a task's memory is charged to; NULL: none. */
static __always_inline struct cgroup *cgroup_of_task(struct task_struct *task)
{
	struct cgroup *unified = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	struct cgroup *cgrp = NULL;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
		int memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);

		cgrp = BPF_CORE_READ(task, cgroups, subsys[memory], cgroup);
	}
	/*
	 * In v2 a task can be below the last cgroup that has the controller: there
	 * it is the task's own that people know.
	 */
	if (!cgrp || BPF_CORE_READ(cgrp, root) == BPF_CORE_READ(unified, root))
		return unified;
	return cgrp;
}

/* NULL for NULL. */
static __always_inline struct cgroup *cgroup_of_memcg(struct mem_cgroup *memcg)
{
	return memcg ? BPF_CORE_READ(memcg, css.cgroup) : NULL;
}

/* 0 for NULL: no cgroup has that id. */
static __always_inline __u64 cgroup_id(struct cgroup *cgrp)
{
	return cgrp ? BPF_CORE_READ(cgrp, kn, id) : 0;
}

static __noinline __attribute__((unused)) int cgroup_read(struct cgroup_names *n,
							  struct cgroup *cgrp)
{
	struct kernfs_node *node = BPF_CORE_READ(cgrp, kn);

	n->bytes = 0;
	n->flags = 0;
	for (int i = 0; i < CGROUP_DEPTH; i++) {
		struct kernfs_node *parent = parent_of_kernfs(node);
		/* from memory, so that the verifier cannot tell one way here from another */
		__u32 at = *(volatile __u32 *)&n->bytes;
		long length;

		if (!parent)
			return 0;
		if (at >= CGROUP_BYTES)
			break;
		length = bpf_probe_read_kernel_str(&n->names[at & (CGROUP_BYTES - 1)], CGROUP_NAME,
						   BPF_CORE_READ(node, name));
		if (length <= 0)
			break;
		n->bytes = at + ((__u32)length & (2 * CGROUP_NAME - 1));
		node = parent;
	}
	n->flags = CGROUP_CUT;
	return 0;
}

#endif /* MW_CGROUP_BPF_H */
