/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * System calls from their entry to their return. What a call was asked for is
 * kept beside its thread until it returns: a call that was under way when the
 * watcher came has nothing there, and is left out.
 *
 * The including file has defined `struct flight`: its first member is
 * `__u32 call`, which call it is; 0 means none.
 */
#ifndef MW_SYSCALL_BPF_H
#define MW_SYSCALL_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "event.bpf.h"

const volatile bool with_storage; /* the kernel has task storage (5.11) */

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flight);
} flights SEC(".maps");

/* Before 5.11, and where the kernel cannot allocate task storage. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before load */
	__type(key, __u32);	/* tid */
	__type(value, struct flight);
} flights_by_tid SEC(".maps");

static const struct flight no_flight;

/* The calling thread's, to be filled; NULL, and counted as lost: no memory. */
static __always_inline struct flight *flight_begin(__u32 call)
{
	struct flight *f;

	if (with_storage) {
		f = bpf_task_storage_get(&flights, bpf_get_current_task_btf(), NULL,
					 BPF_LOCAL_STORAGE_GET_F_CREATE);
	} else {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();

		f = bpf_map_lookup_elem(&flights_by_tid, &tid);
		if (!f) {
			bpf_map_update_elem(&flights_by_tid, &tid, &no_flight, BPF_NOEXIST);
			f = bpf_map_lookup_elem(&flights_by_tid, &tid);
		}
	}
	if (f)
		f->call = call;
	else
		count_lost();
	return f;
}

/* What the calling thread began; NULL: no such call, or it was left out. */
static __always_inline struct flight *flight_of(__u32 call)
{
	struct flight *f;

	if (with_storage) {
		f = bpf_task_storage_get(&flights, bpf_get_current_task_btf(), NULL, 0);
	} else {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();

		f = bpf_map_lookup_elem(&flights_by_tid, &tid);
	}
	return f && f->call == call ? f : NULL;
}

static __always_inline void flight_end(struct flight *f)
{
	f->call = 0;
	if (!with_storage) {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();

		bpf_map_delete_elem(&flights_by_tid, &tid);
	}
}

/* A thread that ends takes nothing with it; storage goes by itself. */
static __always_inline void flight_forget(struct task_struct *task)
{
	__u32 tid = BPF_CORE_READ(task, pid);

	bpf_map_delete_elem(&flights_by_tid, &tid);
}

/* IS_ERR_VALUE(), include/linux/err.h */
static __always_inline bool call_failed(long ret)
{
	return (unsigned long)ret >= (unsigned long)-4095L;
}

/*
 * The arguments of a call as all its hooks see them. `narrow`: the caller is a
 * 32-bit program, or made the call as one (int $0x80). The tracepoints of single
 * calls leave those out (ARCH_TRACE_IGNORE_COMPAT_SYSCALLS, kernel/trace/
 * trace_syscalls.c); sys_enter and sys_exit do not.
 */
struct asked {
	__u64 args[6];
	bool narrow;
};

#ifdef __TARGET_ARCH_x86
/* TS_COMPAT, arch/x86/include/asm/thread_info.h: set from entry to exit. */
#define CALL_IS_NARROW(task) (BPF_CORE_READ(task, thread_info.status) & 2)

static __always_inline __u32 call_number(struct pt_regs *regs)
{
	return (__u32)regs->orig_ax;
}

static __always_inline void call_arguments(struct pt_regs *regs, struct asked *asked)
{
	if (asked->narrow) {
		asked->args[0] = (__u32)regs->bx;
		asked->args[1] = (__u32)regs->cx;
		asked->args[2] = (__u32)regs->dx;
		asked->args[3] = (__u32)regs->si;
		asked->args[4] = (__u32)regs->di;
		asked->args[5] = (__u32)regs->bp;
	} else {
		asked->args[0] = regs->di;
		asked->args[1] = regs->si;
		asked->args[2] = regs->dx;
		asked->args[3] = regs->r10;
		asked->args[4] = regs->r8;
		asked->args[5] = regs->r9;
	}
}
#else
/* TIF_32BIT, arch/arm64/include/asm/thread_info.h */
#define CALL_IS_NARROW(task) (BPF_CORE_READ(task, thread_info.flags) & (1UL << 22))

static __always_inline __u32 call_number(struct pt_regs *regs)
{
	return (__u32)regs->syscallno;
}

static __always_inline void call_arguments(struct pt_regs *regs, struct asked *asked)
{
	for (int i = 0; i < 6; i++)
		asked->args[i] = regs->regs[i];
	asked->args[0] = regs->orig_x0;
}
#endif

static __always_inline bool call_is_narrow(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return CALL_IS_NARROW(task);
}

/* The first `n` of the arguments a tracepoint of a single call shows. */
#define ASKED_OF(ctx, n)                                                                           \
	{                                                                                          \
		.args = {                                                                          \
			(ctx)->args[0],                                                            \
			(n) > 1 ? (ctx)->args[(n) > 1 ? 1 : 0] : 0,                                \
			(n) > 2 ? (ctx)->args[(n) > 2 ? 2 : 0] : 0,                                \
			(n) > 3 ? (ctx)->args[(n) > 3 ? 3 : 0] : 0,                                \
			(n) > 4 ? (ctx)->args[(n) > 4 ? 4 : 0] : 0,                                \
			(n) > 5 ? (ctx)->args[(n) > 5 ? 5 : 0] : 0,                                \
		},                                                                                 \
	}

#endif /* MW_SYSCALL_BPF_H */
