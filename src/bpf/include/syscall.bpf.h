/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * System calls from their entry to their return. What a call was asked for is
 * kept beside its thread until it returns (flight.bpf.h): the including file has
 * defined `struct flight`, with the first arguments as `args`.
 */
#ifndef MW_SYSCALL_BPF_H
#define MW_SYSCALL_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "flight.bpf.h"

/* IS_ERR_VALUE(), include/linux/err.h */
static __always_inline bool call_failed(long ret)
{
	return (unsigned long)ret >= (unsigned long)-4095L;
}

/*
 * The arguments of a call as all its hooks see them. `narrow`: the caller is a
 * 32-bit program, or made the call as one (int $0x80). The tracepoints of single
 * calls leave those out (ARCH_TRACE_IGNORE_COMPAT_SYSCALLS, kernel/trace/
 * trace_syscalls.c); raw_syscalls does not.
 *
 * raw_syscalls is used as a trace event and not as a raw or BTF tracepoint: a
 * program of those is run with preemption on (seen in 7.2), and while a thread
 * is preempted in it, it is not run for any other thread of that CPU
 * (`prog->active`, kernel/trace/bpf_trace.c). Two busy threads lost a third of
 * their calls that way.
 */
struct asked {
	__u64 args[6];
	bool narrow;
};

/*
 * The tracepoints of single calls run their programs with preemption on as well
 * where the kernel has trace_call_bpf_faultable() (kernel/trace/bpf_trace.c; seen
 * in 7.3). There each has a second program, the same again: what the one is not
 * run for, because a thread was preempted in it, the other sees. What is attached
 * later runs later (bpf_prog_array_copy(), kernel/bpf/core.c), and finds everything
 * done if the first was run.
 */
const volatile bool with_second;

/* What second programs did. */
__u64 taken_over;

/* A program and its second, which differ in `which`, 0 or 1. True: it did something. */
#define TWICE(section, name, type)                                                                 \
	static __always_inline bool name##_once(type *ctx, __u32 which);                           \
	SEC(section) int name(type *ctx)                                                           \
	{                                                                                          \
		name##_once(ctx, 0);                                                               \
		return 0;                                                                          \
	}                                                                                          \
	SEC(section) int name##_2(type *ctx)                                                       \
	{                                                                                          \
		if (name##_once(ctx, 1))                                                           \
			__sync_fetch_and_add(&taken_over, 1);                                      \
		return 0;                                                                          \
	}                                                                                          \
	static __always_inline bool name##_once(type *ctx, __u32 which)

#define AT_ENTRY(name, call)                                                                       \
	TWICE("tracepoint/syscalls/sys_enter_" call, name, struct trace_event_raw_sys_enter)
#define AT_RETURN(name, call)                                                                      \
	TWICE("tracepoint/syscalls/sys_exit_" call, name, struct trace_event_raw_sys_exit)

/*
 * Whether the calling thread's flight is this call already: the other program has
 * begun it. What is left of a call whose return nobody saw may look the same, and
 * then serves as well.
 */
static __always_inline bool begun_already(__u32 call, const struct asked *asked)
{
	struct flight *f;

	if (!with_second)
		return false;
	f = flight_of(call);
	if (!f)
		return false;
	for (int i = 0; i < (int)(sizeof(f->args) / sizeof(f->args[0])); i++)
		if (f->args[i] != asked->args[i])
			return false;
	return true;
}

#ifdef __TARGET_ARCH_x86
/* TS_COMPAT, arch/x86/include/asm/thread_info.h: set from entry to exit. */
#define CALL_IS_NARROW(task) (BPF_CORE_READ(task, thread_info.status) & 2)
#else
/* TIF_32BIT, arch/arm64/include/asm/thread_info.h */
#define CALL_IS_NARROW(task) (BPF_CORE_READ(task, thread_info.flags) & (1UL << 22))
#endif

static __always_inline bool call_is_narrow(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return CALL_IS_NARROW(task);
}

/* Registers of a 32-bit program have 32 bits. */
static __always_inline void asked_narrowly(struct asked *asked)
{
	asked->narrow = true;
	for (int i = 0; i < 6; i++)
		asked->args[i] = (__u32)asked->args[i];
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
