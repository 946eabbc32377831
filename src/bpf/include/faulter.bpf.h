/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The running thread's process, if somebody asked about it, and a number for it.
 */
#ifndef MW_FAULTER_BPF_H
#define MW_FAULTER_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "target.bpf.h"

/* In a fault, the process whose fault counters grow. */
struct faulter {
	struct task_struct *leader;
	__u32 tgid;
	__u32 tid;
};

/* False for those nobody asked about. */
static __always_inline bool faulter_find(struct faulter *f)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 id = bpf_get_current_pid_tgid();

	f->tgid = id >> 32;
	f->tid = id;
	if (!target_has_tgid(f->tgid))
		return false;
	f->leader = BPF_CORE_READ(task, group_leader);
	return target_matches(task, f->leader, f->tgid);
}

/*
 * A number for the program a process runs: PID (22 bits, PID_MAX_LIMIT), start in
 * clock ticks as /proc/PID/stat shows it (32 bits, so that a PID that is used
 * again is another process), and how many programs it executed (6 bits). The 4
 * bits behind are the caller's.
 */
#define FAULTER_SHIFT 4
#define NS_PER_TICK 10000000 /* USER_HZ is 100, include/asm-generic/param.h */

static __always_inline __u64 faulter_id(const struct faulter *f)
{
	struct task_struct *leader = f->leader;
	__u64 start = BPF_CORE_READ(leader, start_boottime) / NS_PER_TICK;
	__u64 execs = BPF_CORE_READ(leader, self_exec_id);

	return (__u64)f->tgid << 42 | (start & 0xffffffff) << 10 | (execs & 0x3f) << FAULTER_SHIFT;
}

#endif /* MW_FAULTER_BPF_H */
