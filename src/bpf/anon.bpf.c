// SPDX-License-Identifier: GPL-2.0-only
/*
 * anon: anonymous memory of a program, exact, from its start to its end.
 *
 * The amounts are the kernel's own counters. An iterator reads them at each
 * interval, whether anything seemed to happen or not: a copy on write, an
 * mremap() or, until 6.1, the first 66 faults of a thread make no event at
 * all. The last amount is read when the memory is given back. So nothing is
 * needed on the path of a page fault, and what is put there, where the kernel
 * has do_anonymous_page() as a function, only counts the faults.
 *
 * Everything is known by its mm: a fault finds its process with one look-up,
 * whoever caused it, and an exec begins something new.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"
#include "event.bpf.h"
#include "rss.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define SAMPLE_END 1u	/* the last one: the memory is about to go */
#define SAMPLE_EXEC 2u	/* ... because another program is executed */
#define SAMPLE_OTHER 4u /* ... noticed by someone else: exit or exec, unknown */
#define SAMPLE_WATCHED 8u
#define SAMPLE_SINCE_START 16u /* faults are counted from the very first */

struct anon_sample {
	__u64 time_ns; /* CLOCK_MONOTONIC, when the counters were read */
	__u64 born_ns; /* since when this mm is watched; 0: it is not */
	__u64 mm;      /* its address: the key in `watched` */
	__u64 anon_pages;
	__u64 swap_pages;
	__u64 faults; /* calls of do_anonymous_page() since born_ns */
	__u32 tgid;
	__u32 error_pages; /* the two amounts may be off by this */
	__u32 flags;
	__u32 pad;
	__u8 comm[16];
};
_Static_assert(sizeof(struct anon_sample) == 80, "sample layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct anon_sample *anon_sample_type __attribute__((unused));

/* Counters of one process, spread over CPUs so that they seldom share a line. */
#define FAULT_SLOTS 4

struct watched {
	__u64 born_ns;
	__u32 tgid; /* 0: being filled in */
	__u8 since_start;
	__u8 ended; /* its last sample was sent; user space removes it */
	__u8 pad[2];
	__u8 comm[16];
	__u64 line[4];
	struct {
		__u64 count;
		__u64 line[7];
	} faults[FAULT_SLOTS];
};
_Static_assert(sizeof(struct watched) == 320, "five cache lines");

/* By mm. What finds no room is read all the same; its faults and end are missed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* fewer with -P; set before load */
	__type(key, __u64);
	__type(value, struct watched);
} watched SEC(".maps");

static const struct watched nobody;

/* How often there was no room. Read by user space. */
__u64 no_room;

/*
 * `since_start`: nothing of this mm was touched unseen. An entry of the same
 * process stays as it is: the iterator may have come first.
 */
static __always_inline struct watched *watch(struct task_struct *leader, struct mm_struct *mm,
					     __u32 tgid, __u8 since_start)
{
	__u64 key = (__u64)mm;
	struct watched *w = bpf_map_lookup_elem(&watched, &key);

	if (w && w->tgid == tgid && !w->ended)
		return w;
	if (bpf_map_update_elem(&watched, &key, &nobody, BPF_ANY)) {
		__sync_fetch_and_add(&no_room, 1);
		return NULL;
	}
	w = bpf_map_lookup_elem(&watched, &key);
	if (!w)
		return NULL;
	w->born_ns = bpf_ktime_get_ns();
	w->since_start = since_start;
	bpf_core_read(w->comm, sizeof(w->comm), &leader->comm);
	w->tgid = tgid;
	return w;
}

static __always_inline void fill(struct anon_sample *s, struct rss *rss, struct watched *w)
{
	s->time_ns = bpf_ktime_get_ns();
	s->error_pages = rss->error_pages;
	/* An anonymous enum cannot be relocated; its order never changed. */
	s->anon_pages = rss->pages[MM_ANONPAGES];
	s->swap_pages = rss->pages[MM_SWAPENTS];
	if (!w)
		return;
	s->born_ns = w->born_ns;
	s->flags |= SAMPLE_WATCHED;
	if (w->since_start)
		s->flags |= SAMPLE_SINCE_START;
	for (int i = 0; i < FAULT_SLOTS; i++)
		s->faults += w->faults[i].count;
}

/*
 * One visit a process: its leader, or, where the leader has already exited and
 * lost its mm, each thread that still has it (user space keeps the last).
 */
SEC("iter/task")
int visit(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct anon_sample s = {};
	struct mm_struct *mm, *still = NULL;
	struct watched *w;
	struct rss rss;
	__u64 key;
	__u32 tgid;

	if (!task)
		return 0;
	mm = task->mm;
	if (!mm || task->flags & PF_EXITING)
		return 0;
	tgid = task->tgid;
	leader = task->group_leader;
	if (task != leader && leader->mm)
		return 0;
	if (!target_matches(task, leader, tgid))
		return 0;
	key = (__u64)mm;
	w = bpf_map_lookup_elem(&watched, &key);
	/* Shared with a process that is no thread (vfork): shown once. */
	if (w && (w->ended || w->tgid != tgid))
		return 0;
	if (!w)
		w = watch(leader, mm, tgid, false);
	s.tgid = tgid;
	s.mm = key;
	bpf_core_read(s.comm, sizeof(s.comm), &leader->comm);
	if (w)
		__builtin_memcpy(w->comm, s.comm, sizeof(s.comm));
	rss_read(leader, mm, &rss);
	fill(&s, &rss, w);
	/*
	 * A task gives up its mm only after it has let go of this pointer: still
	 * there means that what was read was alive.
	 */
	bpf_core_read(&still, sizeof(still), &task->mm);
	if (still == mm)
		bpf_seq_write(ctx->meta->seq, &s, sizeof(s));
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct mm_struct *mm = child->mm;
	__u32 tgid = child->tgid;

	/* Not for threads, nor for a vfork, whose child has no memory of its own. */
	if (mm && mm != parent->mm && child->pid == tgid && target_matches(child, child, tgid))
		watch(child, mm, tgid, true);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	struct mm_struct *mm = task->mm;
	__u32 tgid = task->tgid;

	if (mm && target_matches(task, leader, tgid))
		watch(leader, mm, tgid, true);
	return 0;
}

/* The last sample of an mm. Its threads keep nothing back any more. */
static __always_inline void finish(struct mm_struct *mm, struct watched *w, __u32 flags)
{
	struct anon_sample *s;
	struct rss rss;

	s = bpf_ringbuf_reserve(&events, sizeof(*s), 0);
	if (!s) {
		count_lost();
		return;
	}
	__builtin_memset(s, 0, sizeof(*s));
	s->flags = flags;
	s->tgid = w->tgid;
	s->mm = (__u64)mm;
	if (flags & SAMPLE_OTHER) {
		__builtin_memcpy(s->comm, w->comm, sizeof(s->comm));
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();
		struct task_struct *leader = BPF_CORE_READ(task, group_leader);

		bpf_core_read(s->comm, sizeof(s->comm), &leader->comm);
	}
	rss_read_last(mm, &rss);
	fill(s, &rss, w);
	submit_lazily(s);
}

static __always_inline struct watched *alive(__u64 mm)
{
	struct watched *w = bpf_map_lookup_elem(&watched, &mm);

	return w && w->tgid && !w->ended ? w : NULL;
}

/* The last user of the memory has left: a thread that exits or executes, as a rule. */
static __always_inline int goes(struct mm_struct *mm)
{
	__u64 key = (__u64)mm;
	struct watched *w = alive(key);
	__u32 flags = SAMPLE_END;

	if (!w)
		return 0;
	if (bpf_get_current_pid_tgid() >> 32 != w->tgid) {
		flags |= SAMPLE_OTHER;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();

		if (!(BPF_CORE_READ(task, flags) & PF_EXITING))
			flags |= SAMPLE_EXEC;
	}
	finish(mm, w, flags);
	bpf_map_delete_elem(&watched, &key);
	return 0;
}

SEC("fentry/exit_mmap")
int BPF_PROG(on_unmap, struct mm_struct *mm)
{
	return goes(mm);
}

SEC("kprobe/exit_mmap")
int BPF_KPROBE(on_unmap_kp, struct mm_struct *mm)
{
	return goes(mm);
}

/*
 * Without a hook at exit_mmap(): the last thread still has its mm here (see
 * compat.bpf.h). The entry stays until user space has seen the sample, so that
 * the iterator, which may still come by, does not begin anew.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task, bool group_dead)
{
	struct mm_struct *mm = task->mm;
	struct watched *w;

	if (!group_dead || !mm)
		return 0;
	w = alive((__u64)mm);
	if (w && w->tgid == task->tgid) {
		finish(mm, w, SAMPLE_END);
		w->ended = true;
	}
	return 0;
}

/* The point of no return of an exec, with the old memory still in place. */
SEC("tp_btf/sched_prepare_exec")
int BPF_PROG(on_replace, struct task_struct *task)
{
	struct mm_struct *mm = task->mm;
	struct watched *w = mm ? alive((__u64)mm) : NULL;

	if (w && w->tgid == task->tgid) {
		finish(mm, w, SAMPLE_END | SAMPLE_EXEC);
		w->ended = true;
	}
	return 0;
}

static __always_inline int count_fault(struct mm_struct *mm)
{
	__u64 key = (__u64)mm;
	struct watched *w = bpf_map_lookup_elem(&watched, &key);

	if (w)
		__sync_fetch_and_add(&w->faults[bpf_get_smp_processor_id() % FAULT_SLOTS].count, 1);
	return 0;
}

/* At the return: a call that gives up to wait for a lock is made again. */
SEC("fexit/do_anonymous_page")
int BPF_PROG(on_fault, struct vm_fault *vmf, int ret)
{
	if (ret & bpf_core_enum_value(enum vm_fault_reason, VM_FAULT_RETRY))
		return 0;
	return count_fault(vmf->vma->vm_mm);
}

SEC("kprobe/do_anonymous_page")
int BPF_KPROBE(on_fault_kp, struct vm_fault *vmf)
{
	return count_fault(BPF_CORE_READ(vmf, vma, vm_mm));
}
