// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where each CPU keeps its copy of per-CPU data.
 *
 * A per-CPU pointer found in a kernel object is an offset; adding CPU n's base
 * gives the address of its copy. The bases are in __per_cpu_offset, but data
 * symbols can be missing from kallsyms (CONFIG_KALLSYMS_ALL=n). So they are
 * measured: this object's own per-CPU map has a known per-CPU pointer, and a
 * program run on each CPU says where that CPU's copy is. The difference is the
 * base. Used by src/percpu.rs; not a tool.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} mw_percpu SEC(".maps");

__u32 map_id;	 /* in: the kernel's id of mw_percpu */
__u64 base_ptr;	 /* out: the map's per-CPU pointer */
__u64 local_ptr; /* out: the copy of the CPU the program ran on */

SEC("iter/bpf_map")
int find_base(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;
	struct bpf_array *array = (void *)map;

	if (map && map->id == map_id)
		bpf_probe_read_kernel(&base_ptr, sizeof(base_ptr),
				      (void *)array +
					      bpf_core_field_offset(struct bpf_array, pptrs));
	return 0;
}

SEC("raw_tp")
int find_local(void *ctx)
{
	__u32 zero = 0;
	void *copy = bpf_map_lookup_elem(&mw_percpu, &zero);

	local_ptr = (__u64)copy;
	return 0;
}
