// SPDX-License-Identifier: GPL-2.0-only
/*
 * shmsnoop: the system calls of System V shared memory. One event for each
 * call, at its return.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

enum call {
	CALL_NONE,
	CALL_SHMGET,
	CALL_SHMAT,
	CALL_SHMDT,
	CALL_SHMCTL,
	CALL_ANY, /* whichever is under way */
};

/* A segment, as the kernel has it. */
struct segment {
	__u64 bytes;
	__u32 key;
	__u32 found;
};

/* A call under way. */
struct flight {
	__u32 call;
	__u32 narrow; /* of a 32-bit program */
	__u64 args[3];
	__u64 out; /* ipc(): where shmat puts the address; 0: nowhere */
	struct segment segment;
};

#include "syscall.bpf.h"
#include "target.bpf.h"

const volatile bool only_failed;

#define EVENT_NARROW 1u

struct shmsnoop_event {
	__u64 time_ns; /* CLOCK_MONOTONIC, at the return */
	__s64 ret;
	__u64 args[3];
	struct segment segment;
	__u32 tgid;
	__u32 tid;
	__u32 call;
	__u32 flags;
	__u8 comm[16];
};
_Static_assert(sizeof(struct shmsnoop_event) == 88, "event layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct shmsnoop_event *shmsnoop_event_type __attribute__((unused));

/* --- segments --- */

#define SHM_IDS 2	  /* IPC_SHM_IDS, ipc/util.h */
#define INDEX_BITS 15	  /* IPCMNI_SHIFT, ipc/util.h */
#define INDEX_BITS_MAX 24 /* IPCMNI_EXTEND_SHIFT: with ipcmni_extend on the command line */
#define TREE_DEPTH 5

/*
 * An entry of an index tree (lib/xarray.c, the same as lib/radix-tree.c): from
 * the root down by a few bits of the index at a time. A pointer to a node has
 * its lowest bits set to 2 (xa_is_node(), include/linux/xarray.h).
 */
static __always_inline void *tree_entry(struct xarray *tree, __u64 index)
{
	__u64 slots = bpf_core_field_size(struct xa_node, slots) / sizeof(void *);
	unsigned long entry = (unsigned long)BPF_CORE_READ(tree, xa_head);

	for (int i = 0; i < TREE_DEPTH; i++) {
		struct xa_node *node = (void *)(entry - 2);
		__u64 slot;

		if ((entry & 3) != 2 || entry <= 4096)
			break;
		slot = index >> BPF_CORE_READ(node, shift);
		if (!i && slot >= slots)
			return NULL;
		slot &= slots - 1;
		if (bpf_probe_read_kernel(&entry, sizeof(entry),
					  (void *)node +
						  bpf_core_field_offset(struct xa_node, slots) +
						  slot * sizeof(void *)))
			return NULL;
	}
	return entry & 3 ? NULL : (void *)entry;
}

/* What is known of a segment of the calling process's namespace. */
static __noinline int segment_read(struct segment *segment, __u32 id)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct ipc_namespace *ns = BPF_CORE_READ(task, nsproxy, ipc_ns);
	struct ipc_ids *ids = (void *)ns + bpf_core_field_offset(struct ipc_namespace, ids) +
			      SHM_IDS * bpf_core_type_size(struct ipc_ids);
	struct xarray *tree = (void *)ids + bpf_core_field_offset(struct ipc_ids, ipcs_idr.idr_rt);

	segment->found = 0;
	segment->bytes = 0;
	segment->key = 0;
	for (int bits = INDEX_BITS; bits <= INDEX_BITS_MAX; bits += INDEX_BITS_MAX - INDEX_BITS) {
		struct shmid_kernel *shm = tree_entry(tree, id & ((1u << bits) - 1));

		/* the number has more than the index: it says whether this is the one */
		if (!shm || (__u32)BPF_CORE_READ(shm, shm_perm.id) != id)
			continue;
		segment->bytes = BPF_CORE_READ(shm, shm_segsz);
		segment->key = BPF_CORE_READ(shm, shm_perm.key);
		segment->found = 1;
		break;
	}
	return 0;
}

/* --- calls --- */

static __always_inline bool begin(__u32 call, const struct asked *asked, __u64 out)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct flight *f;

	if (!target_matches(task, BPF_CORE_READ(task, group_leader), tgid))
		return false;
	if (begun_already(call, asked))
		return false;
	f = flight_begin(call);
	if (!f)
		return false;
	f->narrow = asked->narrow;
	for (int i = 0; i < 3; i++)
		f->args[i] = asked->args[i];
	f->out = out;
	f->segment.found = 0;
	/* after the call it may be gone */
	if (call == CALL_SHMCTL)
		segment_read(&f->segment, asked->args[0]);
	return true;
}

static __always_inline bool end(__u32 call, long ret)
{
	struct flight *f = call == CALL_ANY ? flight_here() : flight_of(call);
	struct shmsnoop_event *event;
	struct task_struct *task;
	__u64 ids;

	if (!f)
		return false;
	call = f->call;
	if (only_failed && !call_failed(ret))
		goto out;
	if (f->out && !call_failed(ret)) {
		__u32 address = 0;

		bpf_probe_read_user(&address, sizeof(address), (void *)f->out);
		ret = address;
	}
	/* it is attached, or was made just now: it cannot be another one */
	if (call == CALL_SHMAT && !call_failed(ret))
		segment_read(&f->segment, f->args[0]);
	else if (call == CALL_SHMGET && !call_failed(ret))
		segment_read(&f->segment, ret);
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost();
		goto out;
	}
	task = (void *)bpf_get_current_task();
	ids = bpf_get_current_pid_tgid();
	event->time_ns = bpf_ktime_get_ns();
	event->ret = ret;
	for (int i = 0; i < 3; i++)
		event->args[i] = f->args[i];
	event->segment = f->segment;
	event->tgid = ids >> 32;
	event->tid = (__u32)ids;
	event->call = call;
	event->flags = f->narrow ? EVENT_NARROW : 0;
	BPF_CORE_READ_INTO(&event->comm, task, group_leader, comm);
	submit_lazily(event);
out:
	flight_end(f);
	return true;
}

AT_ENTRY(enter_shmget, "shmget")
{
	struct asked asked = ASKED_OF(ctx, 3);

	return begin(CALL_SHMGET, &asked, 0);
}

AT_RETURN(exit_shmget, "shmget")
{
	return end(CALL_SHMGET, ctx->ret);
}

AT_ENTRY(enter_shmat, "shmat")
{
	struct asked asked = ASKED_OF(ctx, 3);

	return begin(CALL_SHMAT, &asked, 0);
}

AT_RETURN(exit_shmat, "shmat")
{
	return end(CALL_SHMAT, ctx->ret);
}

AT_ENTRY(enter_shmdt, "shmdt")
{
	struct asked asked = ASKED_OF(ctx, 1);

	return begin(CALL_SHMDT, &asked, 0);
}

AT_RETURN(exit_shmdt, "shmdt")
{
	return end(CALL_SHMDT, ctx->ret);
}

AT_ENTRY(enter_shmctl, "shmctl")
{
	struct asked asked = ASKED_OF(ctx, 3);

	return begin(CALL_SHMCTL, &asked, 0);
}

AT_RETURN(exit_shmctl, "shmctl")
{
	return end(CALL_SHMCTL, ctx->ret);
}

/* --- all system calls, of which ours are picked --- */

#ifdef __TARGET_ARCH_x86
#define NR_SHMGET 29
#define NR_SHMAT 30
#define NR_SHMCTL 31
#define NR_SHMDT 67
/* arch/x86/entry/syscalls/syscall_32.tbl */
#define NR32_SHMGET 395
#define NR32_SHMCTL 396
#define NR32_SHMAT 397
#define NR32_SHMDT 398
#else
/* include/uapi/asm-generic/unistd.h */
#define NR_SHMGET 194
#define NR_SHMCTL 195
#define NR_SHMAT 196
#define NR_SHMDT 197
/* arch/arm64/tools/syscall_32.tbl */
#define NR32_SHMAT 305
#define NR32_SHMDT 306
#define NR32_SHMGET 307
#define NR32_SHMCTL 308
#endif
#define NR32_IPC 117 /* all of them in one call, of the old days: ipc(2) */

/* include/uapi/linux/ipc.h */
#define IPC_SHMAT 21
#define IPC_SHMDT 22
#define IPC_SHMGET 23
#define IPC_SHMCTL 24

static __always_inline __u32 call_of(__u32 nr, bool narrow)
{
	__u32 call = CALL_NONE;

	if (nr == (narrow ? NR32_SHMGET : NR_SHMGET))
		call = CALL_SHMGET;
	else if (nr == (narrow ? NR32_SHMAT : NR_SHMAT))
		call = CALL_SHMAT;
	else if (nr == (narrow ? NR32_SHMDT : NR_SHMDT))
		call = CALL_SHMDT;
	else if (nr == (narrow ? NR32_SHMCTL : NR_SHMCTL))
		call = CALL_SHMCTL;
	return call;
}

static __always_inline bool number_is_ours(__u32 nr)
{
	return nr == NR32_IPC || call_of(nr, false) || call_of(nr, true);
}

/*
 * ipc(call, first, second, third, ptr) to the call it stands for
 * (compat_ksys_ipc(), ipc/syscall.c).
 */
static __always_inline __u32 unpack(struct asked *asked, __u64 *out)
{
	__u64 first = asked->args[1], second = asked->args[2], third = asked->args[3];
	__u64 ptr = asked->args[4];

	switch ((__u32)asked->args[0] & 0xffff) {
	case IPC_SHMAT:
		asked->args[0] = first;
		asked->args[1] = ptr;
		asked->args[2] = second;
		*out = third;
		return CALL_SHMAT;
	case IPC_SHMDT:
		asked->args[0] = ptr;
		return CALL_SHMDT;
	case IPC_SHMGET:
		asked->args[0] = first;
		asked->args[1] = second;
		asked->args[2] = third;
		return CALL_SHMGET;
	case IPC_SHMCTL:
		asked->args[0] = first;
		asked->args[1] = second;
		asked->args[2] = ptr;
		return CALL_SHMCTL;
	}
	return CALL_NONE;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int on_enter(struct trace_event_raw_sys_enter *ctx)
{
	__u32 nr = (__u32)ctx->id, call;
	__u64 out = 0;

	if (!number_is_ours(nr))
		return 0;
	struct asked asked = ASKED_OF(ctx, 6);

	if (call_is_narrow())
		asked_narrowly(&asked);
	if (asked.narrow && nr == NR32_IPC)
		call = unpack(&asked, &out);
	else
		call = call_of(nr, asked.narrow);
	if (call)
		begin(call, &asked, out);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int on_return(struct trace_event_raw_sys_exit *ctx)
{
	__u32 nr = (__u32)ctx->id, call;
	bool narrow;

	if (!number_is_ours(nr))
		return 0;
	narrow = call_is_narrow();
	/* which of the calls ipc() was, is known from its entry */
	call = narrow && nr == NR32_IPC ? CALL_ANY : call_of(nr, narrow);
	if (call)
		end(call, ctx->ret);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	flight_forget((void *)ctx->args[0]);
	return 0;
}
