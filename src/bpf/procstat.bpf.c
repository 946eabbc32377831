// SPDX-License-Identifier: GPL-2.0-only
/*
 * procstat: the memory of a process as it leaves the CPU.
 *
 * A context switch is one of the hottest events of a machine, so the common
 * case is one array look-up and one byte compared. The first switch of a
 * process in an interval is sampled and sent; later ones only leave a mark.
 * At the end of the interval the iterator visits the marked processes, reads
 * them again and clears the marks, so the row shows where the process came to
 * rest, not where it was first seen.
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

#define SAMPLE_NO_MM 1u /* a kernel thread: no memory to report */

struct procstat_sample {
	__u64 time_ns;	/* CLOCK_MONOTONIC, when the counters were read */
	__u64 start_ns; /* task start; with tgid, identifies the process */
	__u64 file_pages;
	__u64 anon_pages;
	__u64 swap_pages;
	__u64 shmem_pages;
	__u64 vm_pages;
	__u64 vm_peak_pages;
	__u64 rss_peak_pages;
	__u64 data_pages;
	__u64 stack_pages;
	__u64 pgtable_bytes;
	__u64 nvcsw;
	__u64 nivcsw;
	__u32 tgid;
	__u32 error_pages; /* the four resident counters may be off by this */
	__u32 flags;
	__u32 pad;
	__u8 comm[16];
};
_Static_assert(sizeof(struct procstat_sample) == 144, "sample layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct procstat_sample *procstat_sample_type __attribute__((unused));

const volatile __u8 every_switch;
const volatile __u8 with_kthreads;

/* What happened to a process since the last report, one byte a PID. */
#define MARK_IDLE 0    /* did not leave a CPU */
#define MARK_SAMPLED 1 /* left once, and was sampled then */
#define MARK_AGAIN 2   /* left again after its sample: the iterator reads it */
#define MARK_IGNORED 3 /* not a target */
#define MARKS_PER_SLOT 64

struct mark_slot {
	__u8 mark[MARKS_PER_SLOT];
};

/*
 * Indexed by PID, so a look-up is inlined to a few instructions; bytes and not
 * bits, because a byte store needs no atomic (those arrived in 5.12).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* pid_max / 64, set before load */
	__type(key, __u32);
	__type(value, struct mark_slot);
} marks SEC(".maps");

static __always_inline __u8 *mark_of(__u32 tgid)
{
	__u32 slot = tgid / MARKS_PER_SLOT;
	struct mark_slot *s = bpf_map_lookup_elem(&marks, &slot);

	return s ? &s->mark[tgid % MARKS_PER_SLOT] : NULL;
}

static __always_inline void fill(struct procstat_sample *s, struct task_struct *leader,
				 struct mm_struct *mm, __u32 tgid)
{
	struct rss rss;
	__u64 resident, peak;

	__builtin_memset(s, 0, sizeof(*s));
	s->time_ns = bpf_ktime_get_ns();
	s->start_ns = leader->start_time;
	s->tgid = tgid;
	s->nvcsw = leader->nvcsw;
	s->nivcsw = leader->nivcsw;
	bpf_core_read(s->comm, sizeof(s->comm), &leader->comm);
	if (!mm) {
		s->flags = SAMPLE_NO_MM;
		return;
	}
	rss_read(leader, mm, &rss);
	s->error_pages = rss.error_pages;
	/* An anonymous enum cannot be relocated; its order never changed. */
	s->file_pages = rss.pages[MM_FILEPAGES];
	s->anon_pages = rss.pages[MM_ANONPAGES];
	s->swap_pages = rss.pages[MM_SWAPENTS];
	s->shmem_pages = rss.pages[MM_SHMEMPAGES];
	s->vm_pages = mm->total_vm;
	s->data_pages = mm->data_vm;
	s->stack_pages = mm->stack_vm;
	s->pgtable_bytes = mm->pgtables_bytes.counter;
	/* The kernel raises both marks lazily, just before it prints them. */
	resident = s->file_pages + s->anon_pages + s->shmem_pages;
	peak = mm->hiwater_rss;
	s->rss_peak_pages = peak > resident ? peak : resident;
	peak = mm->hiwater_vm;
	s->vm_peak_pages = peak > s->vm_pages ? peak : s->vm_pages;
}

/* Without an mm only a kernel thread is of interest: a zombie holds nothing. */
static __always_inline bool has_subject(struct task_struct *task, struct mm_struct *mm)
{
	return mm || (with_kthreads && BPF_CORE_READ(task, flags) & PF_KTHREAD);
}

static __always_inline void send(struct task_struct *leader, struct mm_struct *mm, __u32 tgid,
				 bool lazily)
{
	struct procstat_sample *s = bpf_ringbuf_reserve(&events, sizeof(*s), 0);

	if (!s) {
		count_lost();
		return;
	}
	fill(s, leader, mm, tgid);
	if (lazily)
		submit_lazily(s);
	else
		bpf_ringbuf_submit(s, 0);
}

/* `prev` is leaving the CPU; `mm` and `tgid` are its own. */
static __always_inline int leaves_cpu(struct task_struct *prev, struct mm_struct *mm, __u32 tgid)
{
	struct task_struct *leader;
	__u8 *mark;

	if (!has_subject(prev, mm))
		return 0;
	if (every_switch) {
		if (!tgid || !target_has_tgid(tgid))
			return 0;
		leader = prev->group_leader;
		if (target_matches(prev, leader, tgid))
			send(leader, mm, tgid, true);
		return 0;
	}
	mark = mark_of(tgid);
	if (!mark) { /* pid_max was raised while running */
		count_lost();
		return 0;
	}
	if (*mark != MARK_IDLE) {
		if (*mark == MARK_SAMPLED)
			*mark = MARK_AGAIN;
		return 0;
	}
	leader = prev->group_leader;
	if (!tgid || !target_matches(prev, leader, tgid)) {
		*mark = MARK_IGNORED;
		return 0;
	}
	*mark = MARK_SAMPLED;
	send(leader, mm, tgid, true);
	return 0;
}

SEC("fentry/finish_task_switch")
int BPF_PROG(on_finish, struct task_struct *prev)
{
	return leaves_cpu(prev, prev->mm, prev->tgid);
}

/* 5.10: (preempt, prev, next); 6.1 appends prev_state. Two are enough. */
SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev)
{
	return leaves_cpu(prev, prev->mm, prev->tgid);
}

static __always_inline int forget(struct task_struct *task)
{
	__u8 *mark;

	if (task->pid != task->tgid)
		return 0;
	mark = mark_of(task->tgid);
	if (mark)
		*mark = MARK_IDLE;
	return 0;
}

/* A PID that is used again must not inherit its predecessor's mark. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	return forget(task);
}

/* Nor a new program the mark of the one before, whose name and memory differ. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task)
{
	return forget(task);
}

/*
 * One visit a process: its leader, or, where the leader has already exited and
 * lost its mm, each thread that still has it (user space keeps the last).
 */
static __always_inline int visit(struct bpf_iter__task *ctx, bool marked_only)
{
	struct task_struct *task = ctx->task, *leader;
	struct procstat_sample s;
	struct mm_struct *mm;
	__u32 tgid;

	if (!task)
		return 0;
	mm = task->mm;
	tgid = task->tgid;
	leader = task->group_leader;
	if (task != leader && (!mm || leader->mm))
		return 0;
	if (marked_only) {
		__u8 *mark = mark_of(tgid), was;

		if (!mark)
			return 0;
		was = *mark;
		/* Cleared before the read: a switch in between marks it anew. */
		*mark = MARK_IDLE;
		if (was != MARK_AGAIN)
			return 0;
	}
	if (!has_subject(task, mm) || !target_matches(task, leader, tgid))
		return 0;
	fill(&s, leader, mm, tgid);
	bpf_seq_write(ctx->meta->seq, &s, sizeof(s));
	return 0;
}

SEC("iter/task")
int visit_marked(struct bpf_iter__task *ctx)
{
	return visit(ctx, true);
}

SEC("iter/task")
int visit_all(struct bpf_iter__task *ctx)
{
	return visit(ctx, false);
}
