// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmapsnoop: system calls that map memory, with what they were asked for and
 * what came of it. One event for each call, at its return.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "path.bpf.h"

char LICENSE[] SEC("license") = "GPL";

enum call {
	CALL_NONE,
	CALL_MMAP,
	CALL_MUNMAP,
	CALL_MREMAP,
};

#define MAP_ANON 0x20 /* MAP_ANONYMOUS, uapi/asm-generic/mman-common.h */

/* A call under way. */
struct flight {
	__u32 call;
	__u32 narrow; /* of a 32-bit program */
	__u64 args[6];
	__u32 has_file;
	__u32 pad;
	struct path_names file;
};

#include "syscall.bpf.h"
#include "target.bpf.h"

const volatile bool only_failed;
const volatile bool all_calls; /* munmap and mremap too */
const volatile __u64 min_bytes;

#define EVENT_NARROW 1u
#define EVENT_FILE 2u

struct mmapsnoop_event {
	__u64 time_ns; /* CLOCK_MONOTONIC, at the return */
	__u64 args[6]; /* as given; a 32-bit program's offset is in bytes too */
	__s64 ret;
	__u64 path_magic;
	__u64 path_inode;
	__u32 tgid;
	__u32 tid;
	__u32 call;
	__u32 flags;
	__u32 path_flags;
	__u32 path_bytes;
	__u8 comm[16];
	__u8 path[PATH_BYTES]; /* only path_bytes of it are written */
};
_Static_assert(sizeof(struct mmapsnoop_event) == 632, "event layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct mmapsnoop_event *mmapsnoop_event_type __attribute__((unused));

static __always_inline bool begin(__u32 call, const struct asked *asked)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	/* the new size, where there are two */
	__u64 bytes = call == CALL_MREMAP ? asked->args[2] : asked->args[1];
	struct file *file;
	struct flight *f;

	if (bytes < min_bytes || !target_matches(task, BPF_CORE_READ(task, group_leader), tgid))
		return false;
	if (begun_already(call, asked))
		return false;
	f = flight_begin(call);
	if (!f)
		return false;
	f->narrow = asked->narrow;
	for (int i = 0; i < 6; i++)
		f->args[i] = asked->args[i];
	f->has_file = 0;
	if (call != CALL_MMAP || asked->args[3] & MAP_ANON)
		return false;
	/*
	 * Now and not at the return: by then another thread may have closed it.
	 * The kernel itself looks a moment later.
	 */
	file = file_of(asked->args[4]);
	if (file) {
		f->has_file = 1;
		path_read(&f->file, file, __builtin_preserve_access_index(&file->f_path));
	}
	return true;
}

static __always_inline bool end(__u32 call, long ret)
{
	struct flight *f = flight_of(call);
	struct mmapsnoop_event *event;
	struct task_struct *task;
	__u32 bytes;
	__u64 ids;

	if (!f)
		return false;
	if (only_failed && !call_failed(ret))
		goto out;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost();
		goto out;
	}
	task = (void *)bpf_get_current_task();
	ids = bpf_get_current_pid_tgid();
	event->time_ns = bpf_ktime_get_ns();
	for (int i = 0; i < 6; i++)
		event->args[i] = f->args[i];
	event->ret = ret;
	event->tgid = ids >> 32;
	event->tid = (__u32)ids;
	event->call = call;
	event->flags = f->narrow ? EVENT_NARROW : 0;
	event->path_magic = 0;
	event->path_inode = 0;
	event->path_flags = 0;
	event->path_bytes = 0;
	if (f->has_file) {
		bytes = f->file.bytes;
		event->flags |= EVENT_FILE;
		event->path_flags = f->file.flags;
		event->path_magic = f->file.magic;
		event->path_inode = f->file.inode;
		if (bytes > PATH_BYTES) {
			bytes = PATH_BYTES;
			event->path_flags |= PATH_CUT;
		}
		event->path_bytes = bytes;
		bpf_probe_read_kernel(event->path, bytes, f->file.names);
	}
	BPF_CORE_READ_INTO(&event->comm, task, group_leader, comm);
	submit_lazily(event);
out:
	flight_end(f);
	return true;
}

AT_ENTRY(enter_mmap, "mmap")
{
	struct asked asked = ASKED_OF(ctx, 6);

	return begin(CALL_MMAP, &asked);
}

AT_RETURN(exit_mmap, "mmap")
{
	return end(CALL_MMAP, ctx->ret);
}

AT_ENTRY(enter_munmap, "munmap")
{
	struct asked asked = ASKED_OF(ctx, 2);

	return begin(CALL_MUNMAP, &asked);
}

AT_RETURN(exit_munmap, "munmap")
{
	return end(CALL_MUNMAP, ctx->ret);
}

AT_ENTRY(enter_mremap, "mremap")
{
	struct asked asked = ASKED_OF(ctx, 5);

	return begin(CALL_MREMAP, &asked);
}

AT_RETURN(exit_mremap, "mremap")
{
	return end(CALL_MREMAP, ctx->ret);
}

/* --- all system calls, of which ours are picked --- */

#ifdef __TARGET_ARCH_x86
#define NR_MMAP 9
#define NR_MUNMAP 11
#define NR_MREMAP 25
/* arch/x86/entry/syscalls/syscall_32.tbl */
#define NR32_OLD_MMAP 90
#define NR32_MUNMAP 91
#define NR32_MREMAP 163
#define NR32_MMAP2 192
#else
/* include/uapi/asm-generic/unistd.h */
#define NR_MMAP 222
#define NR_MUNMAP 215
#define NR_MREMAP 216
/* arch/arm64/tools/syscall_32.tbl; the old mmap is not there */
#define NR32_OLD_MMAP 0xffffffff
#define NR32_MUNMAP 91
#define NR32_MREMAP 163
#define NR32_MMAP2 192
#endif

/* One of ours in either numbering, before it is known which holds. */
static __always_inline bool number_is_ours(__u32 nr)
{
	if (nr == NR_MMAP || nr == NR32_OLD_MMAP || nr == NR32_MMAP2)
		return true;
	return all_calls &&
	       (nr == NR_MUNMAP || nr == NR_MREMAP || nr == NR32_MUNMAP || nr == NR32_MREMAP);
}

static __always_inline __u32 call_of(__u32 nr, bool narrow)
{
	__u32 call = CALL_NONE;

	if (nr == (narrow ? NR32_MMAP2 : NR_MMAP) || (narrow && nr == NR32_OLD_MMAP))
		call = CALL_MMAP;
	else if (all_calls && nr == (narrow ? NR32_MUNMAP : NR_MUNMAP))
		call = CALL_MUNMAP;
	else if (all_calls && nr == (narrow ? NR32_MREMAP : NR_MREMAP))
		call = CALL_MREMAP;
	return call;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int on_enter(struct trace_event_raw_sys_enter *ctx)
{
	__u32 nr = (__u32)ctx->id, call;

	if (!number_is_ours(nr))
		return 0;
	struct asked asked = ASKED_OF(ctx, 6);

	if (call_is_narrow())
		asked_narrowly(&asked);
	call = call_of(nr, asked.narrow);
	if (!call)
		return 0;
	if (asked.narrow && nr == NR32_MMAP2) {
		asked.args[5] <<= 12; /* units of 4096 bytes: mmap2(2) */
	} else if (asked.narrow && nr == NR32_OLD_MMAP) {
		/* struct mmap_arg_struct32, arch/x86/kernel/sys_ia32.c */
		__u32 given[6] = {};

		bpf_probe_read_user(given, sizeof(given), (void *)asked.args[0]);
		for (int i = 0; i < 6; i++)
			asked.args[i] = given[i];
	}
	begin(call, &asked);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int on_return(struct trace_event_raw_sys_exit *ctx)
{
	__u32 nr = (__u32)ctx->id, call;

	if (!number_is_ours(nr))
		return 0;
	call = call_of(nr, call_is_narrow());
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
