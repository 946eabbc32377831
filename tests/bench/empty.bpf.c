// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs that do nothing, on the hooks that commands can use. What
 * they cost is the price of being there at all; a benchmark compares with it.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

SEC("fentry/finish_task_switch")
int BPF_PROG(empty_finish)
{
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(empty_switch)
{
	return 0;
}

SEC("fexit/do_anonymous_page")
int BPF_PROG(empty_anon)
{
	return 0;
}

SEC("fexit/handle_mm_fault")
int BPF_PROG(empty_fault)
{
	return 0;
}

/* What anon could have on every change of a resident counter, and has not. */
SEC("tp_btf/rss_stat")
int BPF_PROG(empty_rss_stat)
{
	return 0;
}

SEC("fentry/get_page_from_freelist")
int BPF_PROG(empty_attempt)
{
	return 0;
}

SEC("tp_btf/mm_page_alloc")
int BPF_PROG(empty_alloc)
{
	return 0;
}

SEC("perf_event")
int empty_event(struct bpf_perf_event_data *ctx)
{
	return 0;
}

/* For functions; how they are attached is said before they are loaded. */
SEC("uprobe")
int empty_entry(struct pt_regs *ctx)
{
	return 0;
}

SEC("uretprobe")
int empty_return(struct pt_regs *ctx)
{
	return 0;
}

SEC("uprobe")
int empty_both(struct pt_regs *ctx)
{
	return 0;
}

/* For trace events, such as those of system calls. */
SEC("tp")
int empty_call(void *ctx)
{
	return 0;
}
