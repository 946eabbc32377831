// SPDX-License-Identifier: GPL-2.0-only
/*
 * brkstack: who moves the break, the end of the heap. Counted by process and
 * stack; user space is told of a new pair, so that it can look at the process
 * while it lives.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "stack.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define CALL_BRK 1u

/* A call under way. */
struct flight {
	__u32 call;
	__u32 narrow;  /* of a 32-bit program */
	__u64 args[1]; /* the break asked for */
	__u64 old;     /* where it is */
};

#include "syscall.bpf.h"
#include "target.bpf.h"

const volatile bool every_call; /* each call is an event */
const volatile __u32 depth_max = STACK_DEPTH;

struct site_key {
	__u64 program; /* tgid << 32 | what tells its programs apart */
	__u64 stack;   /* id; 0: lost */
};

/* What one stack of one program has done to the break. */
struct site {
	__u64 calls; /* those that ask for a place; failing ones too */
	__u64 grown; /* bytes */
	__u64 shrunk;
	__u64 failed;
	__u64 start; /* where the heap begins: by it the program is recognized */
	__u8 comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096); /* --max-stacks changes it before load */
	__type(key, struct site_key);
	__type(value, struct site);
} sites SEC(".maps");

/*
 * Room for one stack of each program: on a CPU there is at most one thread in it
 * (syscall.bpf.h).
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct stack);
} scratch SEC(".maps");

#define EVENT_NEW 1u /* the first of its process and stack */
#define EVENT_FAILED 2u
#define EVENT_NARROW 4u

struct brkstack_event {
	__u64 time_ns; /* CLOCK_MONOTONIC, at the return */
	struct site_key key;
	__u64 start; /* of the heap */
	__u64 old;
	__u64 asked;
	__u64 now;
	__u32 tid;
	__u32 flags;
	__u8 comm[16];
};
_Static_assert(sizeof(struct brkstack_event) == 80, "event layout");

/* Keep the types in BTF, from which the Rust side is generated. */
const struct brkstack_event *brkstack_event_type __attribute__((unused));
const struct site *site_type __attribute__((unused));
const struct site_key *site_key_type __attribute__((unused));
const struct stack *stack_type __attribute__((unused));

static __always_inline bool begin(const struct asked *asked)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct flight *f;

	/* asks where the break is */
	if (!asked->args[0])
		return false;
	if (!target_matches(task, BPF_CORE_READ(task, group_leader), tgid))
		return false;
	if (begun_already(CALL_BRK, asked))
		return false;
	f = flight_begin(CALL_BRK);
	if (!f)
		return false;
	f->narrow = asked->narrow;
	f->args[0] = asked->args[0];
	f->old = BPF_CORE_READ(task, mm, brk);
	return true;
}

/*
 * One number for each program a process runs: a PID that is used again belongs
 * to a process that started at another time, and exec counts up.
 */
static __always_inline __u64 program_of(struct task_struct *leader)
{
	__u64 tgid = bpf_get_current_pid_tgid() >> 32;
	__u64 mixed = BPF_CORE_READ(leader, start_boottime) * 0x9e3779b97f4a7c15ULL;

	return tgid << 32 | (__u32)((mixed >> 32) + BPF_CORE_READ(leader, self_exec_id));
}

static __always_inline bool end(void *ctx, long ret, __u32 which)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct flight *f = flight_of(CALL_BRK);
	__u64 now = ret, grown = 0, shrunk = 0;
	struct brkstack_event *event;
	struct site_key key = {};
	struct site *site;
	struct stack *s;
	__u32 flags = 0;
	long bytes;

	if (!f)
		return false;
	/* brk never returns an error: a call that fails says where the break is. */
	if (now != f->args[0])
		flags |= EVENT_FAILED;
	else if (now > f->old)
		grown = now - f->old;
	else
		shrunk = f->old - now;
	if (f->narrow)
		flags |= EVENT_NARROW;

	s = bpf_map_lookup_elem(&scratch, &which);
	if (!s)
		goto out; /* never */
	key.program = program_of(leader);
	s->owner = key.program;
	bytes = bpf_get_stack(ctx, s->ips, depth_max * sizeof(s->ips[0]), BPF_F_USER_STACK);
	stack_end(s, bytes > 0 ? (__u32)bytes / sizeof(s->ips[0]) : 0);
	key.stack = stack_count(s, grown);

	site = bpf_map_lookup_elem(&sites, &key);
	if (!site) {
		struct site fresh = {};

		fresh.start = BPF_CORE_READ(task, mm, start_brk);
		BPF_CORE_READ_INTO(&fresh.comm, leader, comm);
		if (!bpf_map_update_elem(&sites, &key, &fresh, BPF_NOEXIST))
			flags |= EVENT_NEW;
		site = bpf_map_lookup_elem(&sites, &key);
		if (!site) {
			count_lost(); /* no room */
			goto out;
		}
	}
	__sync_fetch_and_add(&site->calls, 1);
	/* adding a constant becomes something else than an addition: see stack.bpf.h */
	if (grown)
		__sync_fetch_and_add(&site->grown, grown);
	if (shrunk)
		__sync_fetch_and_add(&site->shrunk, shrunk);
	if (flags & EVENT_FAILED)
		__sync_fetch_and_add(&site->failed, 1);

	if (!every_call && !(flags & EVENT_NEW))
		goto out;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		/* what is only announced is found in the table all the same */
		if (every_call)
			count_lost();
		goto out;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->key = key;
	event->start = site->start;
	event->old = f->old;
	event->asked = f->args[0];
	event->now = now;
	event->tid = (__u32)bpf_get_current_pid_tgid();
	event->flags = flags;
	BPF_CORE_READ_INTO(&event->comm, leader, comm);
	if (flags & EVENT_NEW)
		bpf_ringbuf_submit(event, MW_RB_FORCE_WAKEUP);
	else
		submit_lazily(event);
out:
	flight_end(f);
	return true;
}

AT_ENTRY(enter_brk, "brk")
{
	struct asked asked = ASKED_OF(ctx, 1);

	return begin(&asked);
}

AT_RETURN(exit_brk, "brk")
{
	return end(ctx, ctx->ret, which);
}

/* --- all system calls, of which ours is picked --- */

#ifdef __TARGET_ARCH_x86
#define NR_BRK 12
#else
#define NR_BRK 214 /* include/uapi/asm-generic/unistd.h */
#endif
#define NR32_BRK 45 /* syscall_32.tbl of both architectures */

static __always_inline bool is_brk(__u32 nr)
{
	if (nr != NR_BRK && nr != NR32_BRK)
		return false;
	return nr == (call_is_narrow() ? NR32_BRK : NR_BRK);
}

SEC("tracepoint/raw_syscalls/sys_enter")
int on_enter(struct trace_event_raw_sys_enter *ctx)
{
	if (!is_brk((__u32)ctx->id))
		return 0;
	struct asked asked = ASKED_OF(ctx, 1);

	if (call_is_narrow())
		asked_narrowly(&asked);
	begin(&asked);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int on_return(struct trace_event_raw_sys_exit *ctx)
{
	if (is_brk((__u32)ctx->id))
		end(ctx, ctx->ret, 0);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	flight_forget((void *)ctx->args[0]);
	return 0;
}
