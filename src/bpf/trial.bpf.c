// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attached for a moment, to learn whether this kernel lets us. The target does
 * nothing and nobody calls it. Used by src/kernel.rs; not a tool.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

SEC("fentry/bpf_fentry_test1")
int BPF_PROG(try_fentry)
{
	return 0;
}

SEC("kprobe/bpf_fentry_test1")
int BPF_KPROBE(try_kprobe)
{
	return 0;
}

/*
 * Refused under lockdown=confidentiality (security_locked_down(),
 * LOCKDOWN_BPF_READ_KERNEL), and without it, run on demand.
 */
SEC("raw_tp")
int try_read(void *ctx)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)bpf_get_current_task());
	return 7;
}

/* Attached to a function of the watcher's own that nobody calls. */
SEC("uprobe")
int try_uprobe(void *ctx)
{
	return 0;
}

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} try_threads SEC(".maps");

/* Whether task storage can be had: known to the kernel and allocated. */
SEC("raw_tp")
int try_storage(void *ctx)
{
	return bpf_task_storage_get(&try_threads, bpf_get_current_task_btf(), NULL,
				    BPF_LOCAL_STORAGE_GET_F_CREATE) != NULL;
}
