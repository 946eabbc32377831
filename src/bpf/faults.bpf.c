// SPDX-License-Identifier: GPL-2.0-only
/*
 * faults: page faults by process, sort and stack.
 *
 * They are counted in maps, which user space reads at each interval. A fault
 * costs a hash look-up and an addition; by stack also the stack.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"
#include "event.bpf.h"
#include "fault.bpf.h"
#include "stack.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* A program that faults for the first time. */
struct faults_seen {
	__u64 id; /* faulter_id() */
};
_Static_assert(sizeof(struct faults_seen) == 8, "event layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct faults_seen *faults_seen_type __attribute__((unused));

struct faults_count {
	__u64 faults;
	__u8 comm[16];
};
_Static_assert(sizeof(struct faults_count) == 24, "value layout");

const volatile __u8 by_stack;
const volatile __u32 stack_bytes = STACK_DEPTH * 8;

/* By faulter_id() | kind << 1 | major. Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768); /* --max-entries changes it before load */
	__type(key, __u64);
	__type(value, struct faults_count);
} counts SEC(".maps");

struct scratch {
	__u32 busy;
	__u32 pad;
	struct stack stack;
};

/* A stack is too large for the BPF stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline void count_stack(void *ctx, __u64 key)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	__u32 size = stack_bytes;
	long got;

	if (!s)
		return;
	/* Before 5.12 a preempted program can be entered again on its CPU. */
	if (s->busy) {
		amount_add(stackless, 0);
		return;
	}
	s->busy = 1;
	if (size > STACK_DEPTH * 8)
		size = STACK_DEPTH * 8;
	got = bpf_get_stack(ctx, s->stack.ips, size, BPF_F_USER_STACK);
	s->stack.owner = key;
	stack_end(&s->stack, got > 0 ? (__u32)got / 8 : 0);
	stack_count(&s->stack, 0);
	s->busy = 0;
}

static __always_inline int count(void *ctx, const struct faulter *f, __u32 kind, bool major)
{
	__u64 key = faulter_id(f) | kind << 1 | major;
	struct faults_count *c = bpf_map_lookup_elem(&counts, &key);

	if (!c) {
		struct task_struct *leader = f->leader;
		struct faults_count fresh = {};

		bpf_core_read(fresh.comm, sizeof(fresh.comm), &leader->comm);
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&counts, &key, &fresh, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&counts, &key);
		if (!c) {
			count_lost();
			return 0;
		}
		if (by_stack) {
			/* Without room it is noticed at the next report. */
			struct faults_seen *seen = bpf_ringbuf_reserve(&events, sizeof(*seen), 0);

			if (seen) {
				seen->id = key >> FAULTER_SHIFT << FAULTER_SHIFT;
				bpf_ringbuf_submit(seen, 0);
			}
		}
	}
	__sync_fetch_and_add(&c->faults, 1);
	if (by_stack)
		count_stack(ctx, key);
	return 0;
}

/* <= 5.8: (vma, address, flags), and accounted by each architecture. */
SEC("fexit/handle_mm_fault")
int BPF_PROG(on_fault, struct vm_area_struct *vma, unsigned long address, unsigned int flags,
	     struct pt_regs *regs, vm_fault_t ret)
{
	__u32 kind = FAULT_ANON;
	struct fault_note note = {};
	struct faulter f;
	bool noted;

	noted = fault_note_take((__u32)bpf_get_current_pid_tgid(), &note);
	if (!fault_is_complete(ret) || !faulter_find(&f))
		return 0;
	if (noted && fault_note_is_of(&note, address))
		kind = note.kind;
	else if (!fault_has_mapping(vma, address, ret))
		kind = FAULT_OTHER;
	else if (vma->vm_ops)
		kind = fault_kind_of_file(vma->vm_file);
	return count(ctx, &f, kind, fault_is_major(ret, flags));
}

SEC("fentry/do_swap_page")
int BPF_PROG(on_swap, struct vm_fault *vmf)
{
	fault_swaps(vmf);
	return 0;
}

SEC("fentry/do_wp_page")
int BPF_PROG(on_copy, struct vm_fault *vmf)
{
	fault_copies(vmf);
	return 0;
}

/* At its return the mapping may be gone: what is needed of it is noted here. */
SEC("kprobe/handle_mm_fault")
int BPF_KPROBE(enter_fault, struct vm_area_struct *vma, unsigned long address, unsigned int flags)
{
	struct fault_note stale;
	struct faulter f;

	if (!faulter_find(&f))
		return 0;
	/* The kernel follows a limited number of returns at a time; this one it did not. */
	if (fault_note_take(f.tid, &stale))
		count_lost();
	fault_note_set(f.tid, address, fault_kind_of(vma), flags);
	return 0;
}

SEC("kretprobe/handle_mm_fault")
int BPF_KRETPROBE(leave_fault, long ret)
{
	struct fault_note note;
	struct faulter f;

	if (!fault_note_take((__u32)bpf_get_current_pid_tgid(), &note))
		return 0;
	if (!fault_is_complete(ret) || !faulter_find(&f))
		return 0;
	return count(ctx, &f, note.kind, fault_is_major(ret, note.flags));
}

/* Of a fault that enter_fault() left out there is no note, and none is to be made. */
static __always_inline struct fault_note *entered(void)
{
	__u32 tid = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&fault_notes, &tid);
}

SEC("kprobe/do_swap_page")
int BPF_KPROBE(enter_swap)
{
	struct fault_note *note = entered();

	if (note)
		note->kind = FAULT_SWAP;
	return 0;
}

SEC("kprobe/do_wp_page")
int BPF_KPROBE(enter_copy, struct vm_fault *vmf)
{
	struct fault_note *note = entered();

	/* do_swap_page() ends in do_wp_page() when it was for a write */
	if (note && note->kind != FAULT_SWAP && !(BPF_CORE_READ(vmf, vma, vm_flags) & VM_SHARED))
		note->kind = FAULT_COW;
	return 0;
}

static __always_inline int count_event(struct bpf_perf_event_data *ctx, bool major)
{
	struct fault_place place = {.kind = FAULT_OTHER};
	__u64 address = ctx->addr;
	struct faulter f;

	fault_run();
	if (!faulter_find(&f))
		return 0;
	fault_find(address, &place); /* or it stays FAULT_OTHER */
	return count(ctx, &f, fault_kind_noted(&place, f.tid, address, major), major);
}

/* PERF_COUNT_SW_PAGE_FAULTS_MIN and _MAJ, fired where the kernel counts. */
SEC("perf_event")
int on_minor(struct bpf_perf_event_data *ctx)
{
	return count_event(ctx, false);
}

SEC("perf_event")
int on_major(struct bpf_perf_event_data *ctx)
{
	return count_event(ctx, true);
}

/* The same where the mapping cannot be looked for (bpf_find_vma() came with 5.17). */
static __always_inline int count_plain(struct bpf_perf_event_data *ctx, bool major)
{
	struct faulter f;

	fault_run();
	return faulter_find(&f) ? count(ctx, &f, FAULT_OTHER, major) : 0;
}

SEC("perf_event")
int plain_minor(struct bpf_perf_event_data *ctx)
{
	return count_plain(ctx, false);
}

SEC("perf_event")
int plain_major(struct bpf_perf_event_data *ctx)
{
	return count_plain(ctx, true);
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(on_user_fault, unsigned long address, struct pt_regs *regs, unsigned long error_code)
{
	fault_begins(address, error_code);
	return 0;
}

SEC("tp_btf/page_fault_kernel")
int BPF_PROG(on_kernel_fault, unsigned long address, struct pt_regs *regs, unsigned long error_code)
{
	fault_begins(address, error_code);
	return 0;
}

/* A swap entry less, while this thread is in a fault: it was swapped in. */
SEC("tp_btf/rss_stat")
int BPF_PROG(on_rss, struct mm_struct *mm, int member)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	__u64 id = bpf_get_current_pid_tgid();

	/* <= 6.1 it fires later, for many faults at once. */
	if (rss_is_split() || member != MM_SWAPENTS)
		return 0;
	if (target_has_tgid(id >> 32) && BPF_CORE_READ(task, mm) == mm)
		fault_note_set(id, 0, FAULT_SWAP, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct fault_note stale;

	fault_note_take(task->pid, &stale);
	return 0;
}
