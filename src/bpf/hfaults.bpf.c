// SPDX-License-Identifier: GPL-2.0-only
/*
 * hfaults: faults that are to bring a huge page, by process, and the calls that
 * ask for huge pages or refuse them.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"
#include "event.bpf.h"
#include "fault.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* include/uapi/asm-generic/mman-common.h */
#define MADV_HUGEPAGE 14
#define MADV_NOHUGEPAGE 15
#define MADV_COLLAPSE 25

/* A call of madvise() that concerns huge pages, at its return. */
struct hfaults_call {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 start;
	__u64 bytes;
	__s64 result; /* 0, or a negative error number */
	__u32 tgid;
	__u32 tid;
	__u32 advice;
	__u32 pad;
	__u8 comm[16];
};
_Static_assert(sizeof(struct hfaults_call) == 64, "event layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct hfaults_call *hfaults_call_type __attribute__((unused));

struct hfaults_count {
	__u64 huge;	/* a transparent huge page of anonymous memory */
	__u64 fallback; /* none was to be had: small pages instead */
	__u64 zero;	/* the huge zero page, for a read */
	__u64 hugetlb;	/* a page of hugetlbfs */
	__u64 calls;	/* of madvise() */
	__u8 comm[16];
};
_Static_assert(sizeof(struct hfaults_count) == 56, "value layout");

const volatile __u8 every_call;
const volatile __u8 zero_pages = 1; /* transparent_hugepage/use_zero_page */
const volatile __u64 huge_size = 2 << 20;
const volatile __u32 huge_order = 9;

/* By faulter_id(). Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768); /* --max-entries changes it before load */
	__type(key, __u64);
	__type(value, struct hfaults_count);
} counts SEC(".maps");

static __always_inline struct hfaults_count *count_of(const struct faulter *f)
{
	__u64 key = faulter_id(f);
	struct hfaults_count *c = bpf_map_lookup_elem(&counts, &key);

	if (!c) {
		struct task_struct *leader = f->leader;
		struct hfaults_count fresh = {};

		bpf_core_read(fresh.comm, sizeof(fresh.comm), &leader->comm);
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&counts, &key, &fresh, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&counts, &key);
		if (!c)
			count_lost();
	}
	return c;
}

/* Whether the mapping has room for a huge page there (thp_vma_suitable_order()). */
static __always_inline bool fits(struct vm_area_struct *vma, __u64 address)
{
	__u64 start = address & ~(huge_size - 1);

	return start >= BPF_CORE_READ(vma, vm_start) &&
	       start + huge_size <= BPF_CORE_READ(vma, vm_end);
}

/* do_huge_pmd_anonymous_page() is done: thp_fault_alloc or thp_fault_fallback. */
static __always_inline int anon_done(bool fit, __u32 flags, __u32 ret)
{
	struct hfaults_count *c;
	struct faulter f;

	/* A mapping that has no room is not asked for memory. */
	if (ret & VM_FAULT_FALLBACK ? !fit : !fault_is_complete(ret))
		return 0;
	if (!faulter_find(&f))
		return 0;
	c = count_of(&f);
	if (!c)
		return 0;
	if (ret & VM_FAULT_FALLBACK)
		__sync_fetch_and_add(&c->fallback, 1);
	else if (!(flags & FAULT_FLAG_WRITE) && zero_pages)
		__sync_fetch_and_add(&c->zero, 1);
	else
		__sync_fetch_and_add(&c->huge, 1);
	return 0;
}

static __always_inline int hugetlb_done(__u32 ret)
{
	struct hfaults_count *c;
	struct faulter f;

	if (!fault_is_complete(ret) || !faulter_find(&f))
		return 0;
	c = count_of(&f);
	if (c)
		__sync_fetch_and_add(&c->hugetlb, 1);
	return 0;
}

SEC("fexit/do_huge_pmd_anonymous_page")
int BPF_PROG(on_huge, struct vm_fault *vmf, vm_fault_t ret)
{
	/* Only what failed for want of room keeps its mapping's lock for sure. */
	bool fit = ret & VM_FAULT_FALLBACK && fits(vmf->vma, vmf->address);

	return anon_done(fit, flags_of_fault(vmf), ret);
}

SEC("fexit/hugetlb_fault")
int BPF_PROG(on_hugetlb, struct mm_struct *mm, struct vm_area_struct *vma, unsigned long address,
	     unsigned int flags, vm_fault_t ret)
{
	return hugetlb_done(ret);
}

/* What a note of a thread in do_huge_pmd_anonymous_page() says. */
#define NOTE_FITS 1
/* What a note of an allocation says. */
#define NOTE_GOT 1
#define NOTE_NONE 2

SEC("kprobe/do_huge_pmd_anonymous_page")
int BPF_KPROBE(enter_huge, struct vm_fault *vmf)
{
	struct vm_area_struct *vma = BPF_CORE_READ(vmf, vma);
	__u64 address = BPF_CORE_READ(vmf, address);
	struct fault_note stale;
	struct faulter f;

	if (!faulter_find(&f))
		return 0;
	/* The kernel follows a limited number of returns at a time; this one it did not. */
	if (fault_note_take(f.tid, &stale))
		count_lost();
	fault_note_set(f.tid, address, fits(vma, address) ? NOTE_FITS : 0, flags_of_fault(vmf));
	return 0;
}

SEC("kretprobe/do_huge_pmd_anonymous_page")
int BPF_KRETPROBE(leave_huge, long ret)
{
	struct fault_note note;

	if (!fault_note_take((__u32)bpf_get_current_pid_tgid(), &note))
		return 0;
	return anon_done(note.kind == NOTE_FITS, note.flags, ret);
}

SEC("kretprobe/hugetlb_fault")
int BPF_KRETPROBE(leave_hugetlb, long ret)
{
	return hugetlb_done(ret);
}

/*
 * Without functions: a thread that asked for a huge page and then completes a
 * fault in anonymous memory has got it, or has not.
 */
SEC("tp_btf/mm_page_alloc")
int BPF_PROG(on_alloc, struct page *page, unsigned int order)
{
	__u64 id;

	if (order != huge_order)
		return 0;
	id = bpf_get_current_pid_tgid();
	if (target_has_tgid(id >> 32))
		fault_note_set(id, 0, page ? NOTE_GOT : NOTE_NONE, 0);
	return 0;
}

/* What was asked for before is not for this fault. */
static __always_inline int begin(void)
{
	struct fault_note stale;

	fault_note_take((__u32)bpf_get_current_pid_tgid(), &stale);
	return 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(on_user_fault)
{
	return begin();
}

SEC("tp_btf/page_fault_kernel")
int BPF_PROG(on_kernel_fault)
{
	return begin();
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct fault_note stale;

	fault_note_take(task->pid, &stale);
	return 0;
}

static __always_inline bool is_hugetlb(struct file *file)
{
	return file && BPF_CORE_READ(file, f_inode, i_sb, s_magic) == HUGETLBFS_MAGIC;
}

SEC("perf_event")
int on_minor(struct bpf_perf_event_data *ctx)
{
	struct fault_place place = {.kind = FAULT_FILE};
	struct fault_note note = {};
	struct hfaults_count *c;
	struct faulter f;
	bool asked;

	fault_run();
	asked = fault_note_take((__u32)bpf_get_current_pid_tgid(), &note);
	if (!faulter_find(&f))
		return 0;
	if (!fault_find(ctx->addr, &place)) {
		if (asked)
			count_lost();
		return 0;
	}
	if (place.kind == FAULT_ANON ? !asked : !is_hugetlb(place.file))
		return 0;
	c = count_of(&f);
	if (!c)
		return 0;
	if (place.kind != FAULT_ANON)
		__sync_fetch_and_add(&c->hugetlb, 1);
	else if (note.kind == NOTE_GOT)
		__sync_fetch_and_add(&c->huge, 1);
	else
		__sync_fetch_and_add(&c->fallback, 1);
	return 0;
}

/* A call on its way, by thread. */
struct call {
	__u64 start;
	__u64 bytes;
	__u64 advice;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

SEC("tp/syscalls/sys_enter_madvise")
int enter_madvise(struct trace_event_raw_sys_enter *ctx)
{
	struct call call = {ctx->args[0], ctx->args[1], ctx->args[2]};
	struct faulter f;

	if (call.advice != MADV_HUGEPAGE && call.advice != MADV_NOHUGEPAGE &&
	    call.advice != MADV_COLLAPSE)
		return 0;
	if (faulter_find(&f) && bpf_map_update_elem(&calls, &f.tid, &call, BPF_ANY))
		count_lost();
	return 0;
}

SEC("tp/syscalls/sys_exit_madvise")
int leave_madvise(struct trace_event_raw_sys_exit *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct call *known = bpf_map_lookup_elem(&calls, &tid), call;
	struct hfaults_call *event;
	struct task_struct *leader;
	struct hfaults_count *c;
	struct faulter f;

	if (!known)
		return 0;
	call = *known;
	bpf_map_delete_elem(&calls, &tid);
	if (!faulter_find(&f))
		return 0;
	c = count_of(&f);
	if (c)
		__sync_fetch_and_add(&c->calls, 1);
	if (!every_call)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost();
		return 0;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->start = call.start;
	event->bytes = call.bytes;
	event->result = ctx->ret;
	event->tgid = f.tgid;
	event->tid = f.tid;
	event->advice = call.advice;
	event->pad = 0;
	leader = f.leader;
	bpf_core_read(event->comm, sizeof(event->comm), &leader->comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}
