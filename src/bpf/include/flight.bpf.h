/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a thread is in the middle of, from its begin to its end: kept beside the
 * thread meanwhile. What was under way when the watcher came has nothing there,
 * and is left out.
 *
 * The including file has defined `struct flight`: its first member is
 * `__u32 call`, what is under way; 0 means nothing.
 */
#ifndef MW_FLIGHT_BPF_H
#define MW_FLIGHT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
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

/* What the calling thread began; NULL: nothing, or it was left out. */
static __always_inline struct flight *flight_here(void)
{
	struct flight *f;

	if (with_storage) {
		f = bpf_task_storage_get(&flights, bpf_get_current_task_btf(), NULL, 0);
	} else {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();

		f = bpf_map_lookup_elem(&flights_by_tid, &tid);
	}
	return f && f->call ? f : NULL;
}

/* The same, if it is this. */
static __always_inline struct flight *flight_of(__u32 call)
{
	struct flight *f = flight_here();

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

#endif /* MW_FLIGHT_BPF_H */
