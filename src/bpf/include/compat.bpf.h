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

/* include/linux/sched.h; macros, so not in BTF. The values never changed. */
#define PF_KTHREAD 0x00200000
#define PF_EXITING 0x00000004
#define PF_KSWAPD 0x00020000

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

/*
 * sched_process_exit comes before the task gives up its mm, and says whether it
 * is the last thread, since 6.16 ("exit: move and extend sched_process_exit()
 * tracepoint"). Its trace event has a type of its own since, with the member
 * group_dead: that is how it is recognised (src/cmd/anon.rs). Delete the other
 * ways to see a last reading when 6.16 is the oldest kernel supported.
 */

/*
 * The allocation tracepoints. What a program finds in its context follows from
 * the trace event of the same name, whose type is in BTF.
 *
 * >= 6.1: kmalloc (call_site, ptr, bytes_req, bytes_alloc, gfp, node),
 * kmem_cache_alloc (call_site, ptr, cache, gfp, node); each for any node, with a
 * class of its own (11e9734bcb6a "mm/slab_common: unify NUMA and UMA version of
 * tracepoints").
 *
 * 6.0: both (call_site, ptr, cache, bytes_req, bytes_alloc, gfp), and a second
 * event of each kind for allocations on a chosen node (b347aa7b5747 "mm/tracing:
 * add 'accounted' entry into output of allocation tracepoints").
 *
 * <= 5.19: the same without the cache. Delete the older two when 6.1 is the
 * oldest kernel supported.
 */
struct trace_event_raw_kmem_alloc___shared {
	bool accounted;
} __attribute__((preserve_access_index));

static __always_inline bool alloc_events_share_a_class(void)
{
	return bpf_core_type_exists(struct trace_event_raw_kmem_alloc___shared);
}

static __always_inline bool alloc_events_have_cache(void)
{
	return bpf_core_field_exists(((struct trace_event_raw_kmem_alloc___shared *)0)->accounted);
}

/*
 * percpu_alloc_percpu begins with call_site since 5.19 (f67bed134a05
 * "percpu: improve percpu_alloc_percpu event trace"). Delete the older form with 5.18.
 */
struct trace_event_raw_percpu_alloc_percpu___sited {
	size_t bytes_alloc;
} __attribute__((preserve_access_index));

static __always_inline bool percpu_event_has_call_site(void)
{
	return bpf_core_field_exists(
		((struct trace_event_raw_percpu_alloc_percpu___sited *)0)->bytes_alloc);
}

/*
 * The cache an object belongs to, in the first page of its slab, until 5.16.
 * struct slab has it since, in the same place (d122019bf061 "mm: Split slab into
 * its own type", 07f910f9b729 "mm: Remove slab from struct page"). Needed only
 * where events do not name the cache: delete with 5.19.
 */
struct page___slab {
	unsigned long compound_head; /* bit 0: a tail page, and where its head is */
	struct kmem_cache *slab_cache;
} __attribute__((preserve_access_index));

struct slab___cached {
	struct kmem_cache *slab_cache;
} __attribute__((preserve_access_index));

static __always_inline struct kmem_cache *cache_of_page(struct page___slab *page)
{
	unsigned long head = BPF_CORE_READ(page, compound_head);

	if (head & 1)
		page = (void *)(head - 1);
	if (bpf_core_field_exists(page->slab_cache))
		return BPF_CORE_READ(page, slab_cache);
	return BPF_CORE_READ((struct slab___cached *)page, slab_cache);
}

/*
 * SLAB, the allocator that SLUB replaced, keeps big kmalloc objects in caches
 * too (removed in 6.8, 16a1d968358a "mm/slab: remove mm/slab.c and slab_def.h").
 */
struct kmem_cache___slab {
	size_t colour;
} __attribute__((preserve_access_index));

static __always_inline bool allocator_is_slab(void)
{
	return bpf_core_field_exists(((struct kmem_cache___slab *)0)->colour);
}

/*
 * The path a program knows a mapped file by.
 *
 * >= 6.8: for a file of a stacked file system (overlayfs), mappings hold the file
 * below, and `f_path` is that one's; the user's path is beside it (def3ae83da02
 * "fs: store real path instead of fake path in backing file f_path").
 *
 * <= 6.7: `f_path` is the user's. Delete when 6.7 is no longer supported.
 */
struct backing_file___user {
	struct file file;
	struct path user_path;
} __attribute__((preserve_access_index));

/*
 * FMODE_BACKING, include/linux/fs.h: a macro, so not in BTF, and it has moved once
 * (to bit 24 in 6.9; bit 25 means something else since).
 */
#define FMODE_BACKING_EITHER (1 << 24 | 1 << 25)

static __always_inline struct path *path_of_file(struct file *file)
{
	struct backing_file___user *backing = (void *)file;
	struct dentry *dentry;

	if (bpf_core_field_exists(backing->user_path) &&
	    BPF_CORE_READ(file, f_mode) & FMODE_BACKING_EITHER) {
		dentry = BPF_CORE_READ(backing, user_path.dentry);
		/* What lies behind another sort of file is no path. */
		if (dentry && BPF_CORE_READ(dentry, d_inode) &&
		    BPF_CORE_READ(dentry, d_sb) == BPF_CORE_READ(backing, user_path.mnt, mnt_sb))
			return (void *)file +
			       bpf_core_field_offset(struct backing_file___user, user_path);
	}
	return (void *)file + bpf_core_field_offset(struct file, f_path);
}

/*
 * The flags of a fault are an enumeration where FAULT_FLAG_* are one (seen in 6.1),
 * and a plain number before (seen in 5.10). Relocations tell the two apart. Delete
 * when 5.10 is no longer supported.
 */
struct vm_fault___number {
	unsigned int flags;
} __attribute__((preserve_access_index));

static __always_inline __u32 flags_of_fault(struct vm_fault *vmf)
{
	struct vm_fault___number *old = (void *)vmf;

	if (bpf_core_field_exists(old->flags))
		return BPF_CORE_READ(old, flags);
	return BPF_CORE_READ(vmf, flags);
}

/*
 * A number that changes with every change of an address space's mappings.
 *
 * >= 6.13: a sequence count (eb449bd96954 "mm: convert mm_lock_seq to a proper
 * seqcount"). >= 6.4: a plain number (5e31275cc997 "mm: add per-VMA lock and helper
 * functions to control it"). Before, or without per-VMA locks: none.
 */
struct mm_struct___counted {
	seqcount_t mm_lock_seq;
} __attribute__((preserve_access_index));

struct mm_struct___numbered {
	int mm_lock_seq;
} __attribute__((preserve_access_index));

/* False where there is none. */
static __always_inline bool changes_of_mm(struct mm_struct *mm, __u32 *changes)
{
	struct mm_struct___counted *counted = (void *)mm;
	struct mm_struct___numbered *numbered = (void *)mm;

	if (bpf_core_field_exists(numbered->mm_lock_seq))
		*changes = BPF_CORE_READ(numbered, mm_lock_seq);
	else if (bpf_core_field_exists(counted->mm_lock_seq))
		*changes = BPF_CORE_READ(counted, mm_lock_seq.sequence);
	else
		return false;
	return true;
}

/*
 * What contains a node of kernfs (a cgroup's folder).
 *
 * >= 6.15: `__parent`, read under RCU (633488947ef6 "kernfs: Use RCU to access
 * kernfs_node::parent."). vmlinux.h has this layout.
 *
 * <= 6.14: `parent`. Delete when 6.14 is no longer supported.
 */
struct kernfs_node___old {
	struct kernfs_node *parent;
} __attribute__((preserve_access_index));

static __always_inline struct kernfs_node *parent_of_kernfs(struct kernfs_node *node)
{
	if (bpf_core_field_exists(node->__parent))
		return BPF_CORE_READ(node, __parent);
	return BPF_CORE_READ((struct kernfs_node___old *)node, parent);
}

/*
 * The tracepoints at the begin of reclaim.
 *
 * >= 7.2: (gfp, order, memcg); the trace event has the id of the memory cgroup's
 * folder (seen in 7.2, not in 6.18).
 *
 * Before: (order, gfp); the flags have 4 bytes in the trace event of 5.10, 8 in
 * that of 6.1. Relocations adjust the width. Delete when 7.2 is the oldest kernel
 * supported.
 */
struct trace_event_raw_mm_vmscan_direct_reclaim_begin_template___any {
	int order;
	unsigned long gfp_flags;
	u64 memcg_id;
} __attribute__((preserve_access_index));

#define reclaim_begin___any trace_event_raw_mm_vmscan_direct_reclaim_begin_template___any

static __always_inline bool reclaim_events_have_memcg(void)
{
	return bpf_core_field_exists(((struct reclaim_begin___any *)0)->memcg_id);
}

static __always_inline u64 reclaim_target(struct reclaim_begin___any *event)
{
	return reclaim_events_have_memcg() ? event->memcg_id : 0;
}

/*
 * Swap I/O takes a context, before the page, that gathers pages; pages are handed to
 * the device by swap_add_folio() ("mm/swap: introduce struct swap_io_ctx", "mm/swap:
 * also use struct swap_iocb for block I/O"; seen in 7.3, not in 7.2). Before, the
 * page comes first. Delete when 7.3 is the oldest kernel supported.
 */
struct swap_io_ctx___seven {
	struct swap_iocb *sio;
} __attribute__((preserve_access_index));

static __always_inline bool swap_io_has_context(void)
{
	return bpf_core_type_exists(struct swap_io_ctx___seven);
}

/*
 * Swapped-out pages that were all zeroes are marked in a bitmap of the swap area
 * (0ca0c24e3211 "mm: store zero pages to be swapped out in a bitmap", 6.12) until
 * 7.2 or so: later ones are told by not being handed to a device (above).
 */
struct swap_info_struct___zeromap {
	unsigned long *zeromap;
} __attribute__((preserve_access_index));

static __always_inline bool swap_page_is_zero(struct swap_info_struct *area, u64 offset)
{
	struct swap_info_struct___zeromap *marked = (void *)area;
	unsigned long *map, word = 0;

	if (!bpf_core_field_exists(marked->zeromap))
		return false;
	map = BPF_CORE_READ(marked, zeromap);
	if (!map || bpf_probe_read_kernel(&word, sizeof(word), map + offset / 64))
		return false;
	return word >> (offset % 64) & 1;
}

/*
 * Pages of a folio. The number is in its second page: `_nr_pages` (seen in 6.18),
 * `_folio_nr_pages` (seen in 6.1 and 6.12); before, a page to be swapped is one
 * page or a huge page of `huge` pages.
 */
struct folio___named {
	unsigned int _folio_nr_pages;
} __attribute__((preserve_access_index));

/* The flags of a page are a number (seen in 6.12), or a structure with one (seen in 7.2). */
struct page___word {
	unsigned long flags;
} __attribute__((preserve_access_index));

static __always_inline unsigned long flags_of_page(struct page *page)
{
	struct page___word *word = (void *)page;

	if (bpf_core_field_exists(word->flags))
		return BPF_CORE_READ(word, flags);
	return BPF_CORE_READ(page, flags.f);
}

static __always_inline u32 pages_of_folio(struct page *page, u64 huge)
{
	struct folio___named *named = (void *)page;
	struct folio *folio = (void *)page;

	if (!(flags_of_page(page) >> bpf_core_enum_value(enum pageflags, PG_head) & 1))
		return 1;
	if (bpf_core_field_exists(folio->_nr_pages))
		return BPF_CORE_READ(folio, _nr_pages);
	if (bpf_core_field_exists(named->_folio_nr_pages))
		return BPF_CORE_READ(named, _folio_nr_pages);
	return huge;
}

/*
 * mark_victim is given the task and shows its memory where its trace event has the
 * member `uid` (seen in 6.1.176 and in 6.12), and only a thread id before (seen in
 * 5.10). Delete the older form with the last kernel that has it.
 */
struct trace_event_raw_mark_victim___full {
	uid_t uid;
} __attribute__((preserve_access_index));

static __always_inline bool mark_is_of_task(void)
{
	return bpf_core_field_exists(((struct trace_event_raw_mark_victim___full *)0)->uid);
}

#endif /* MW_COMPAT_BPF_H */
