// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs that do nothing, on the hooks procstat can use. What they cost is
 * the price of being there at all; a benchmark subtracts it.
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
