// SPDX-License-Identifier: GPL-2.0-only
/*
 * vmscan: time spent in reclaim and what it does, from the kernel's tracepoints.
 *
 * They are used as trace events: their programs run with preemption off on every
 * kernel, so that no begin and no end is skipped.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "cgroup.bpf.h"
#include "compat.bpf.h"
#include "event.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* Sorts of time. */
#define SLAB 0
#define DIRECT 1
#define MEMCG 2
#define HIGH 3
#define SPANS 4

/* What a row is about; zeroes where it is about everything. */
struct vmscan_key {
	__u64 cgroup;
	__u8 comm[16];
};
_Static_assert(sizeof(struct vmscan_key) == 24, "key layout");

struct vmscan_sums {
	__u64 ns[SPANS];
	__u64 spans[SPANS]; /* how many */
	__u64 throttled_us;
	__u64 throttles;
	__u64 runs;   /* of kswapd */
	__u64 wakes;  /* kswapd was asked to run */
	__u64 writes; /* folios handed over for writing */
};
_Static_assert(sizeof(struct vmscan_sums) == 104, "value layout");

const struct vmscan_key *vmscan_key_type __attribute__((unused));

const volatile __u8 by_cgroup;
const volatile __u8 by_comm;

/* Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before load */
	__type(key, struct vmscan_key);
	__type(value, struct vmscan_sums);
} sums SEC(".maps");

/* When a thread began what it has not ended. */
struct vmscan_span {
	__u32 tid;
	__u32 sort;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct vmscan_span);
	__type(value, __u64);
} begun SEC(".maps");

static const struct vmscan_sums no_sums;

static __always_inline bool wanted_here(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!target_has_tgid(bpf_get_current_pid_tgid() >> 32))
		return false;
	return target_has_comm(BPF_CORE_READ(task, group_leader)) && target_has_cgroup(task);
}

static __always_inline struct vmscan_sums *sums_here(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct vmscan_key key = {};
	struct vmscan_sums *s;

	if (by_cgroup)
		key.cgroup = cgroup_id(cgroup_of_task(task));
	if (by_comm) {
		task = BPF_CORE_READ(task, group_leader);
		/* What follows the terminator is not part of the name. */
		bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), &task->comm);
	}
	s = bpf_map_lookup_elem(&sums, &key);
	if (!s) {
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&sums, &key, &no_sums, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&sums, &key);
		if (!s)
			count_lost();
	}
	return s;
}

static __always_inline int span_begins(__u32 sort)
{
	struct vmscan_span span = {.tid = (__u32)bpf_get_current_pid_tgid(), .sort = sort};
	__u64 now = bpf_ktime_get_ns();

	if (wanted_here() && bpf_map_update_elem(&begun, &span, &now, BPF_ANY))
		count_lost();
	return 0;
}

static __always_inline int span_ends(__u32 sort)
{
	struct vmscan_span span = {.tid = (__u32)bpf_get_current_pid_tgid(), .sort = sort};
	__u64 *start = bpf_map_lookup_elem(&begun, &span);
	struct vmscan_sums *s;
	__u64 ns;

	if (!start) /* it began before the watcher came, or is not asked for */
		return 0;
	ns = bpf_ktime_get_ns() - *start;
	bpf_map_delete_elem(&begun, &span);
	s = sums_here();
	if (!s)
		return 0;
	__sync_fetch_and_add(&s->ns[sort], ns);
	__sync_fetch_and_add(&s->spans[sort], 1);
	return 0;
}

SEC("tp/vmscan/mm_shrink_slab_start")
int slab_begins(void *ctx)
{
	return span_begins(SLAB);
}

SEC("tp/vmscan/mm_shrink_slab_end")
int slab_ends(void *ctx)
{
	return span_ends(SLAB);
}

SEC("tp/vmscan/mm_vmscan_direct_reclaim_begin")
int direct_begins(void *ctx)
{
	return span_begins(DIRECT);
}

SEC("tp/vmscan/mm_vmscan_direct_reclaim_end")
int direct_ends(void *ctx)
{
	return span_ends(DIRECT);
}

SEC("tp/vmscan/mm_vmscan_memcg_reclaim_begin")
int memcg_begins(void *ctx)
{
	return span_begins(MEMCG);
}

SEC("tp/vmscan/mm_vmscan_memcg_reclaim_end")
int memcg_ends(void *ctx)
{
	return span_ends(MEMCG);
}

/* Both sleep and reclaim on behalf of memory.high; most calls have nothing to do. */
SEC("fentry/__mem_cgroup_handle_over_high")
int BPF_PROG(high_begins)
{
	return span_begins(HIGH);
}

SEC("fexit/__mem_cgroup_handle_over_high")
int BPF_PROG(high_ends)
{
	return span_ends(HIGH);
}

SEC("fentry/mem_cgroup_handle_over_high")
int BPF_PROG(old_high_begins)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	/* Called on every way back to user space that has other work, too. */
	if (!BPF_CORE_READ(task, memcg_nr_pages_over_high))
		return 0;
	return span_begins(HIGH);
}

SEC("fexit/mem_cgroup_handle_over_high")
int BPF_PROG(old_high_ends)
{
	return span_ends(HIGH);
}

/* Adds one, or more, to a figure of the thread that is here. */
#define ADD(figure, amount)                                                                        \
	({                                                                                         \
		struct vmscan_sums *s = wanted_here() ? sums_here() : NULL;                        \
                                                                                                   \
		if (s)                                                                             \
			__sync_fetch_and_add(&s->figure, amount);                                  \
		0;                                                                                 \
	})

SEC("tp/vmscan/mm_vmscan_kswapd_wake")
int kswapd_runs(void *ctx)
{
	return ADD(runs, 1);
}

SEC("tp/vmscan/mm_vmscan_wakeup_kswapd")
int kswapd_wakes(void *ctx)
{
	return ADD(wakes, 1);
}

SEC("tp/vmscan/mm_vmscan_write_folio")
int folio_written(void *ctx)
{
	return ADD(writes, 1);
}

SEC("tp/vmscan/mm_vmscan_writepage")
int page_written(void *ctx)
{
	return ADD(writes, 1);
}

SEC("tp/vmscan/mm_vmscan_throttled")
int throttled(struct trace_event_raw_mm_vmscan_throttled *ctx)
{
	int us = ctx->usec_delayed;

	ADD(throttles, 1);
	return us > 0 ? ADD(throttled_us, us) : 0;
}

/*
 * --count: one program for each event, since a program of a trace event cannot tell
 * which one it is on before 5.15 (its record's head is hidden, and cookies came then).
 */
#define EVENTS 48

__u64 counts[EVENTS];

#define COUNTER(n)                                                                                 \
	SEC("tp")                                                                                  \
	int count_##n(void *ctx)                                                                   \
	{                                                                                          \
		if (wanted_here())                                                                 \
			__sync_fetch_and_add(&counts[n], 1);                                       \
		return 0;                                                                          \
	}

/* clang-format off */
COUNTER(0) COUNTER(1) COUNTER(2) COUNTER(3) COUNTER(4) COUNTER(5) COUNTER(6) COUNTER(7)
COUNTER(8) COUNTER(9) COUNTER(10) COUNTER(11) COUNTER(12) COUNTER(13) COUNTER(14) COUNTER(15)
COUNTER(16) COUNTER(17) COUNTER(18) COUNTER(19) COUNTER(20) COUNTER(21) COUNTER(22) COUNTER(23)
COUNTER(24) COUNTER(25) COUNTER(26) COUNTER(27) COUNTER(28) COUNTER(29) COUNTER(30) COUNTER(31)
COUNTER(32) COUNTER(33) COUNTER(34) COUNTER(35) COUNTER(36) COUNTER(37) COUNTER(38) COUNTER(39)
COUNTER(40) COUNTER(41) COUNTER(42) COUNTER(43) COUNTER(44) COUNTER(45) COUNTER(46) COUNTER(47)
	/* clang-format on */
