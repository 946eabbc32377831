/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernels that the BPF side has to know, in one
 * place. Each flavour names the change that made it necessary and the
 * release from which it can be deleted. Newest layout first.
 */
#ifndef MW_COMPAT_BPF_H
#define MW_COMPAT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* include/linux/sched.h; a macro, so not in BTF. The value never changed. */
#define PF_KTHREAD 0x00200000

/*
 * Resident-set counters of an mm.
 *
 * >= 6.2: four per-CPU counters in mm_struct (f1a7941243c1 "mm: convert mm's
 * rss stats into percpu_counter"). vmlinux.h has this layout.
 *
 * <= 6.1: four atomics in mm_struct, and a cache of at most 66 faults in each
 * task (SPLIT_RSS_COUNTING). Delete when 6.1 is no longer supported.
 */
struct mm_rss_stat___split {
	atomic_long_t count[4];
} __attribute__((preserve_access_index));

struct mm_struct___split {
	struct mm_rss_stat___split rss_stat;
} __attribute__((preserve_access_index));

struct task_rss_stat___split {
	int events;
	int count[4];
} __attribute__((preserve_access_index));

struct task_struct___split {
	struct task_rss_stat___split rss_stat;
} __attribute__((preserve_access_index));

/* True where the counters are the split kind of <= 6.1. A load-time constant. */
static __always_inline bool rss_is_split(void)
{
	return bpf_core_field_exists(((struct mm_rss_stat___split *)0)->count);
}

#endif /* MW_COMPAT_BPF_H */
