/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The exact resident-set counters of an mm, whichever way the kernel keeps
 * them. Reading `mm->rss_stat` alone is off by up to 66 faults a thread
 * (<= 6.1) or by max(32, 2 * CPUs) pages a CPU (>= 6.2); summing the parts is
 * exact for a process at rest.
 */
#ifndef MW_RSS_BPF_H
#define MW_RSS_BPF_H

#include "compat.bpf.h"

#define RSS_COUNTERS 4 /* NR_MM_COUNTERS: file, anon, swap entries, shmem */
#define RSS_MAX_CPUS 1024
/*
 * Threads whose caches are added on <= 6.1. The verifier unrolls the walk, so
 * it needs a bound; what lies beyond is stated as an error bound in the sample.
 */
#define RSS_MAX_THREADS 768
/*
 * What a thread keeps at most before it hands its cache to the mm: 66 faults
 * (check_sync_rss_stat(), mm/memory.c before 6.2: events++ > 64), each of up to
 * 16 pages (fault_around_bytes, 64 KiB).
 */
#define RSS_TASK_CACHE_PAGES (66 * 16)

struct rss {
	__s64 pages[RSS_COUNTERS]; /* indexed by MM_FILEPAGES ... MM_SHMEMPAGES */
	__u32 error_pages;	   /* each counter may be off by this many; 0: exact */
};

const volatile __u32 rss_cpus; /* possible CPUs */
/*
 * Address of CPU n's copy of per-CPU data, minus the data's base. Filled by
 * user space before load (src/percpu.rs) and again when a CPU comes online.
 */
__u64 rss_cpu_offset[RSS_MAX_CPUS];
__u8 rss_cpu_known[RSS_MAX_CPUS];

/* Four counters side by side in one allocation: one read per CPU, not four. */
static __always_inline void rss_add_cpus(struct percpu_counter *fbc, struct rss *rss)
{
	__s32 *base[RSS_COUNTERS];
	bool adjacent = true;

	for (int i = 0; i < RSS_COUNTERS; i++) {
		base[i] = BPF_CORE_READ(fbc + i, counters);
		if (base[i] != base[0] + i)
			adjacent = false;
	}
	for (__u32 cpu = 0; cpu < rss_cpus && cpu < RSS_MAX_CPUS; cpu++) {
		__s32 part[RSS_COUNTERS] = {};
		__u64 offset = rss_cpu_offset[cpu];

		if (!rss_cpu_known[cpu])
			continue; /* never online: its parts are zero */
		if (adjacent) {
			bpf_probe_read_kernel(part, sizeof(part), (void *)base[0] + offset);
		} else {
			for (int i = 0; i < RSS_COUNTERS; i++)
				bpf_probe_read_kernel(&part[i], sizeof(part[i]),
						      (void *)base[i] + offset);
		}
		for (int i = 0; i < RSS_COUNTERS; i++)
			rss->pages[i] += part[i];
	}
}

/*
 * <= 6.1: what each thread of the group has not yet handed to the mm. Tasks that
 * are not added, beyond the walk's bound or in other processes that share the
 * mm (vfork, CLONE_VM alone), are in the error bound.
 */
static __always_inline void rss_add_threads(struct task_struct *leader, int users, struct rss *rss)
{
	struct signal_struct *signal = BPF_CORE_READ(leader, signal);
	int added = 0;
	struct list_head *head =
		(void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	struct list_head *node = BPF_CORE_READ(head, next);

	for (int n = 0; n < RSS_MAX_THREADS; n++) {
		struct task_struct___split *thread;
		int part[RSS_COUNTERS] = {};

		if (!node || node == head)
			break;
		thread = (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
		bpf_core_read(part, sizeof(part), &thread->rss_stat.count);
		for (int i = 0; i < RSS_COUNTERS; i++)
			rss->pages[i] += part[i];
		added++;
		node = BPF_CORE_READ(node, next);
	}
	if (users > added)
		rss->error_pages = (users - added) * RSS_TASK_CACHE_PAGES;
}

static __always_inline void rss_read(struct task_struct *leader, struct mm_struct *mm,
				     struct rss *rss)
{
	rss->error_pages = 0;
	if (rss_is_split()) {
		struct mm_struct___split *old = (void *)mm;

		bpf_core_read(rss->pages, sizeof(rss->pages), &old->rss_stat.count);
		rss_add_threads(leader, mm->mm_users.counter, rss);
	} else {
		struct percpu_counter *fbc =
			(void *)mm + bpf_core_field_offset(struct mm_struct, rss_stat);

		for (int i = 0; i < RSS_COUNTERS; i++)
			rss->pages[i] = mm->rss_stat[i].count;
		rss_add_cpus(fbc, rss);
	}
	/* The kernel clamps a momentarily negative sum the same way. */
	for (int i = 0; i < RSS_COUNTERS; i++)
		if (rss->pages[i] < 0)
			rss->pages[i] = 0;
}

/*
 * The same when the last thread has left, with an mm from any place (a kprobe's
 * argument): until 6.1 each thread hands over what it kept as it leaves
 * (exit_mm() and exec_mmap() call sync_mm_rss()).
 */
static __always_inline void rss_read_last(struct mm_struct *mm, struct rss *rss)
{
	rss->error_pages = 0;
	if (rss_is_split()) {
		struct mm_struct___split *old = (void *)mm;

		bpf_core_read(rss->pages, sizeof(rss->pages), &old->rss_stat.count);
	} else {
		struct percpu_counter *fbc =
			(void *)mm + bpf_core_field_offset(struct mm_struct, rss_stat);

		for (int i = 0; i < RSS_COUNTERS; i++)
			rss->pages[i] = BPF_CORE_READ(fbc + i, count);
		rss_add_cpus(fbc, rss);
	}
	for (int i = 0; i < RSS_COUNTERS; i++)
		if (rss->pages[i] < 0)
			rss->pages[i] = 0;
}

/* rss_read() with an mm from any place, of a process that still has threads. */
static __always_inline void rss_read_any(struct task_struct *leader, struct mm_struct *mm,
					 struct rss *rss)
{
	rss_read_last(mm, rss);
	if (rss_is_split())
		rss_add_threads(leader, BPF_CORE_READ(mm, mm_users.counter), rss);
}

#endif /* MW_RSS_BPF_H */
