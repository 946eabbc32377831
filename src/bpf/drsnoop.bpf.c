// SPDX-License-Identifier: GPL-2.0-only
/*
 * drsnoop: threads that had to wait for memory. Each stall is one event, at its
 * end: reclaim that the thread itself did (for the machine, for a memory cgroup
 * or for a node), compaction, and the sleep that memory.high prescribes.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "cgroup.bpf.h"
#include "compat.bpf.h"
#include "stack.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* What a thread is in. */
enum call {
	CALL_NONE, /* it may have noted whom a reclaim will be for */
	CALL_RECLAIM,
	CALL_COMPACT,
	CALL_HIGH, /* above memory.high, on its way to user space */
};

/* The order of Kind in src/cmd/drsnoop.rs. */
enum kind {
	KIND_DIRECT,
	KIND_MEMCG,
	KIND_NODE,
	KIND_COMPACT,
	KIND_HIGH,
	KINDS,
};

struct flight {
	__u32 call;
	__u32 outer; /* CALL_HIGH: what this reclaim is a part of */
	__u32 kind;
	__s32 order;
	__u64 start_ns;
	__u64 target; /* cgroup to be reclaimed; 0: not known */
	__u64 gfp;
	__u64 throttled_us;
	__u64 stack; /* of the kernel */
	__s64 free;  /* pages; below 0: not known */
};

#include "flight.bpf.h"
#include "faulter.bpf.h"
#include "target.bpf.h"

const volatile __u64 min_ns;	      /* shorter stalls are only in the histogram */
const volatile __u64 free_pages_addr; /* of the kernel's own sum; 0: not known */
const volatile bool with_stacks;      /* all of them, those of programs too */
const volatile bool finds_target;     /* for_memcg or for_memcg_k is attached */

struct drsnoop_event {
	__u64 time_ns; /* CLOCK_MONOTONIC, at the end */
	__u64 latency_ns;
	__u64 cgroup; /* the stalled thread's */
	__u64 target; /* the one that is reclaimed; 0: none, or not known */
	__u64 gfp;
	__u64 reclaimed;    /* pages */
	__u64 throttled_us; /* of the stall */
	__s64 free;	    /* pages at the begin; below 0: not known */
	__u64 who;	    /* faulter_id() */
	__u64 kernel_stack; /* id; 0: lost, or not asked for */
	__u64 user_stack;
	__u32 tgid;
	__u32 tid;
	__u32 kind;
	__s32 order;
	__u32 result; /* enum compact_result */
	__u32 kthread;
	__u8 comm[16];
};
_Static_assert(sizeof(struct drsnoop_event) == 128, "event layout");

/* Keep the types in BTF, from which the Rust side is generated. */
const struct drsnoop_event *drsnoop_event_type __attribute__((unused));
const struct stack *stack_type __attribute__((unused));

/* All stalls, by kind and order, whether they are shown or not. */
#define ORDERS 12  /* the last one also stands for larger ones */
#define BUCKETS 32 /* below 1 us, 2 us, 4 us ...; the last one has no end */

struct spread {
	__u64 total_ns;
	__u64 stalls[BUCKETS];
};
const struct spread *spread_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS *ORDERS);
	__type(key, __u32);
	__type(value, struct spread);
} spreads SEC(".maps");

/* One for each kind, as a thread may be preempted in a program of one of them. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct stack);
} scratch SEC(".maps");

/* Frames from which the reason of a reclaim can be told (src/cmd/drsnoop.rs). */
#define REASON_DEPTH 8

static __always_inline __u64 stack_here(void *ctx, __u32 kind, __u64 owner, __u64 flags, __u32 most)
{
	struct stack *s = bpf_map_lookup_elem(&scratch, &kind);
	long bytes;

	if (!s)
		return 0;
	bytes = bpf_get_stack(ctx, s->ips, most * sizeof(__u64), flags);
	if (bytes <= 0)
		return 0;
	s->owner = owner;
	stack_end(s, bytes / sizeof(__u64));
	return stack_count(s, 0);
}

static __always_inline void spread_count(__u32 kind, __s32 order, __u64 latency_ns)
{
	__u64 us = latency_ns / 1000;
	struct spread *spread;
	__u32 bucket = 0, key;

	if (order < 0)
		order = 0;
	if (order >= ORDERS)
		order = ORDERS - 1;
	key = kind * ORDERS + order;
	spread = bpf_map_lookup_elem(&spreads, &key);
	if (!spread)
		return;
	while (us && bucket < BUCKETS - 1) {
		us >>= 1;
		bucket++;
	}
	__sync_fetch_and_add(&spread->total_ns, latency_ns);
	__sync_fetch_and_add(&spread->stalls[bucket & (BUCKETS - 1)], 1);
}

/* What the kernel counts as free on the whole machine. */
static __always_inline __s64 free_pages(void)
{
	int item = bpf_core_enum_value(enum zone_stat_item, NR_FREE_PAGES);
	__s64 pages;

	if (!free_pages_addr ||
	    bpf_probe_read_kernel(&pages, sizeof(pages),
				  (void *)(free_pages_addr + item * sizeof(pages))))
		return -1;
	return pages < 0 ? 0 : pages;
}

static __always_inline struct flight *stall_begin(__u32 call, __u32 kind, __s32 order, __u64 gfp)
{
	struct flight *f = flight_here();
	__u32 outer = f ? f->call : CALL_NONE;
	struct faulter who;

	if (!outer && !faulter_find(&who))
		return NULL;
	f = flight_begin(call);
	if (!f)
		return NULL;
	f->outer = outer == CALL_HIGH ? CALL_HIGH : CALL_NONE;
	f->kind = kind;
	f->order = order;
	f->gfp = gfp;
	f->throttled_us = 0;
	f->stack = 0;
	f->free = free_pages();
	f->start_ns = bpf_ktime_get_ns();
	return f;
}

static __always_inline void stall_end(void *ctx, struct flight *f, __u64 reclaimed, __u32 result)
{
	__u64 now = bpf_ktime_get_ns(), user_stack = 0;
	struct task_struct *task, *leader;
	struct drsnoop_event *event;
	__u32 kind = f->kind;
	struct faulter who;

	spread_count(kind, f->order, now - f->start_ns);
	if (now - f->start_ns < min_ns)
		return;
	task = (void *)bpf_get_current_task();
	leader = BPF_CORE_READ(task, group_leader);
	who.leader = leader;
	who.tgid = bpf_get_current_pid_tgid() >> 32;
	if (with_stacks)
		user_stack = stack_here(ctx, kind, faulter_id(&who), BPF_F_USER_STACK, STACK_DEPTH);
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost();
		return;
	}
	event->time_ns = now;
	event->latency_ns = now - f->start_ns;
	event->cgroup = cgroup_id(cgroup_of_task(task));
	event->target = f->target;
	event->gfp = f->gfp;
	event->reclaimed = reclaimed;
	event->throttled_us = f->throttled_us;
	event->free = f->free;
	event->who = faulter_id(&who);
	event->kernel_stack = f->stack;
	event->user_stack = user_stack;
	event->tgid = who.tgid;
	event->tid = (__u32)bpf_get_current_pid_tgid();
	event->kind = kind;
	event->order = f->order;
	event->result = result;
	event->kthread = !!(BPF_CORE_READ(task, flags) & PF_KTHREAD);
	bpf_core_read(event->comm, sizeof(event->comm), &leader->comm);
	submit_lazily(event);
}

/* --- reclaim --- */

static __always_inline int reclaim_begin(void *ctx, __u32 kind, __s32 order, __u64 gfp,
					 __u64 target)
{
	struct flight *f = stall_begin(CALL_RECLAIM, kind, order, gfp);
	__u32 most = with_stacks ? STACK_DEPTH : REASON_DEPTH;

	if (!f)
		return 0;
	if (kind != KIND_MEMCG || target || !finds_target)
		f->target = target;
	if (kind == KIND_MEMCG || with_stacks)
		f->stack = stack_here(ctx, kind, 0, 0, most);
	/* The walk is not a part of it. */
	f->start_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int reclaim_end(void *ctx, __u64 reclaimed)
{
	struct flight *f = flight_of(CALL_RECLAIM);

	if (!f)
		return 0;
	stall_end(ctx, f, reclaimed, 0);
	if (f->outer)
		f->call = f->outer;
	else
		flight_end(f);
	return 0;
}

/* A pause within reclaim, because writing or other reclaimers are behind. */
static __always_inline int reclaim_paused(__u32 us)
{
	struct flight *f = flight_of(CALL_RECLAIM);

	if (f)
		f->throttled_us += us;
	return 0;
}

/* Whom the reclaim that follows is for, where its tracepoint does not say it. */
static __always_inline int reclaim_for(struct mem_cgroup *memcg)
{
	struct flight *f = flight_here();
	struct faulter who;

	if (!f) {
		if (!faulter_find(&who))
			return 0;
		f = flight_begin(CALL_NONE);
		if (!f)
			return 0;
	}
	f->target = cgroup_id(cgroup_of_memcg(memcg));
	return 0;
}

SEC("fentry/try_to_free_mem_cgroup_pages")
int BPF_PROG(for_memcg, struct mem_cgroup *memcg)
{
	return reclaim_for(memcg);
}

SEC("kprobe/try_to_free_mem_cgroup_pages")
int BPF_KPROBE(for_memcg_k, struct mem_cgroup *memcg)
{
	return reclaim_for(memcg);
}

#define RECLAIM_BEGINS(name, btf_name, event, kind)                                                \
	SEC("tp/vmscan/" #event)                                                                   \
	int name(struct reclaim_begin___any *ctx)                                                  \
	{                                                                                          \
		return reclaim_begin(ctx, kind, ctx->order, ctx->gfp_flags, reclaim_target(ctx));  \
	}                                                                                          \
	SEC("tp_btf/" #event)                                                                      \
	int btf_name(__u64 *ctx)                                                                   \
	{                                                                                          \
		if (reclaim_events_have_memcg())                                                   \
			return reclaim_begin(ctx, kind, ctx[1], ctx[0],                            \
					     cgroup_id(cgroup_of_memcg((void *)ctx[2])));          \
		return reclaim_begin(ctx, kind, ctx[0], ctx[1], 0);                                \
	}

#define RECLAIM_ENDS(name, btf_name, event)                                                        \
	SEC("tp/vmscan/" #event)                                                                   \
	int name(struct trace_event_raw_mm_vmscan_direct_reclaim_end_template *ctx)                \
	{                                                                                          \
		return reclaim_end(ctx, ctx->nr_reclaimed);                                        \
	}                                                                                          \
	SEC("tp_btf/" #event)                                                                      \
	int btf_name(__u64 *ctx)                                                                   \
	{                                                                                          \
		return reclaim_end(ctx, ctx[0]);                                                   \
	}

RECLAIM_BEGINS(direct_begin, direct_begin_b, mm_vmscan_direct_reclaim_begin, KIND_DIRECT)
RECLAIM_ENDS(direct_end, direct_end_b, mm_vmscan_direct_reclaim_end)
RECLAIM_BEGINS(memcg_begin, memcg_begin_b, mm_vmscan_memcg_reclaim_begin, KIND_MEMCG)
RECLAIM_ENDS(memcg_end, memcg_end_b, mm_vmscan_memcg_reclaim_end)
RECLAIM_ENDS(node_end, node_end_b, mm_vmscan_node_reclaim_end)

SEC("tp/vmscan/mm_vmscan_node_reclaim_begin")
int node_begin(struct trace_event_raw_mm_vmscan_node_reclaim_begin *ctx)
{
	return reclaim_begin(ctx, KIND_NODE, ctx->order, ctx->gfp_flags, 0);
}

SEC("tp_btf/mm_vmscan_node_reclaim_begin")
int node_begin_b(__u64 *ctx)
{
	return reclaim_begin(ctx, KIND_NODE, ctx[1], ctx[2], 0);
}

SEC("tp/vmscan/mm_vmscan_throttled")
int paused(struct trace_event_raw_mm_vmscan_throttled *ctx)
{
	return reclaim_paused(ctx->usec_delayed);
}

SEC("tp_btf/mm_vmscan_throttled")
int paused_b(__u64 *ctx)
{
	return reclaim_paused(ctx[2]);
}

/* --- compaction --- */

static __always_inline int compact_begin(void *ctx, __u32 order, __u64 gfp)
{
	struct flight *f = stall_begin(CALL_COMPACT, KIND_COMPACT, order, gfp);

	if (!f)
		return 0;
	f->target = 0;
	if (with_stacks)
		f->stack = stack_here(ctx, KIND_COMPACT, 0, 0, STACK_DEPTH);
	f->start_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int compact_end(void *ctx, __u32 result)
{
	struct flight *f = flight_of(CALL_COMPACT);

	if (!f)
		return 0;
	stall_end(ctx, f, 0, result);
	flight_end(f);
	return 0;
}

SEC("fentry/try_to_compact_pages")
int BPF_PROG(compact_enter, gfp_t gfp, unsigned int order)
{
	return compact_begin(ctx, order, gfp);
}

SEC("fexit/try_to_compact_pages")
int BPF_PROG(compact_leave, gfp_t gfp, unsigned int order, unsigned int alloc_flags,
	     const struct alloc_context *ac, int prio, void *capture, int ret)
{
	return compact_end(ctx, ret);
}

SEC("kprobe/try_to_compact_pages")
int BPF_KPROBE(compact_enter_k, gfp_t gfp, unsigned int order)
{
	return compact_begin(ctx, order, gfp);
}

SEC("kretprobe/try_to_compact_pages")
int BPF_KRETPROBE(compact_leave_k, int ret)
{
	return compact_end(ctx, ret);
}

/* --- the sleep that memory.high prescribes --- */

/* The nearest cgroup of the thread, from its own upwards, that is above its limit. */
static __always_inline __u64 above_high(struct task_struct *task)
{
	int memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	struct cgroup_subsys_state *css = BPF_CORE_READ(task, cgroups, subsys[memory]);

	for (int i = 0; i < CGROUP_DEPTH && css; i++) {
		struct mem_cgroup *memcg =
			(void *)css - bpf_core_field_offset(struct mem_cgroup, css);

		if (BPF_CORE_READ(memcg, memory.usage.counter) > BPF_CORE_READ(memcg, memory.high))
			return cgroup_id(BPF_CORE_READ(css, cgroup));
		css = BPF_CORE_READ(css, parent);
	}
	return 0;
}

/* Called at each return to user space of a thread that was told to look. */
static __always_inline int high_begin(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct faulter who;

	if (BPF_CORE_READ(task, memcg_nr_pages_over_high) && faulter_find(&who))
		flight_begin(CALL_HIGH);
	return 0;
}

static __always_inline int high_end(void)
{
	struct flight *f = flight_of(CALL_HIGH);

	if (f)
		flight_end(f);
	return 0;
}

static __always_inline int sleep_begin(void *ctx)
{
	struct flight *f = flight_of(CALL_HIGH);

	if (!f)
		return 0;
	f->kind = KIND_HIGH;
	f->order = 0;
	f->gfp = 0;
	f->throttled_us = 0;
	f->free = free_pages();
	f->target = above_high((void *)bpf_get_current_task());
	f->stack = with_stacks ? stack_here(ctx, KIND_HIGH, 0, 0, STACK_DEPTH) : 0;
	f->start_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int sleep_end(void *ctx)
{
	struct flight *f = flight_of(CALL_HIGH);

	if (f)
		stall_end(ctx, f, 0, 0);
	return 0;
}

/* The name is this kernel's, set before load. */
SEC("fentry/__mem_cgroup_handle_over_high")
int BPF_PROG(high_enter)
{
	return high_begin();
}

SEC("fexit/__mem_cgroup_handle_over_high")
int BPF_PROG(high_leave)
{
	return high_end();
}

SEC("fentry/schedule_timeout_killable")
int BPF_PROG(sleep_enter)
{
	return sleep_begin(ctx);
}

SEC("fexit/schedule_timeout_killable")
int BPF_PROG(sleep_leave)
{
	return sleep_end(ctx);
}

SEC("kprobe/__mem_cgroup_handle_over_high")
int BPF_KPROBE(high_enter_k)
{
	return high_begin();
}

SEC("kretprobe/__mem_cgroup_handle_over_high")
int BPF_KRETPROBE(high_leave_k)
{
	return high_end();
}

SEC("kprobe/schedule_timeout_killable")
int BPF_KPROBE(sleep_enter_k)
{
	return sleep_begin(ctx);
}

SEC("kretprobe/schedule_timeout_killable")
int BPF_KRETPROBE(sleep_leave_k)
{
	return sleep_end(ctx);
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	flight_forget((void *)ctx->args[0]);
	return 0;
}
