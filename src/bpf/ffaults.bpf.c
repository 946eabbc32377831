// SPDX-License-Identifier: GPL-2.0-only
/*
 * ffaults: page faults by file.
 *
 * A file is its device, inode and generation, so that neither a name that is
 * used again nor one that is gone mixes two files up. Its path is read when it
 * is first seen, and sent once.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"
#include "event.bpf.h"
#include "fault.bpf.h"
#define PATH_BYTES 4096 /* PATH_MAX, include/uapi/linux/limits.h */
#define PATH_NAMES 64
#include "path.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct ffaults_file {
	__u64 inode;
	__u32 device; /* major << 20 | minor, include/linux/kdev_t.h */
	__u32 generation;
};
_Static_assert(sizeof(struct ffaults_file) == 16, "key layout");

struct ffaults_key {
	struct ffaults_file file;
	__u64 who; /* faulter_id(); 0: whoever */
};
_Static_assert(sizeof(struct ffaults_key) == 24, "key layout");

#define FILE_NAMED 1   /* its path was sent */
#define FILE_DELETED 2 /* no name leads to it any more */

struct ffaults_count {
	__u64 minor;
	__u64 major;
	__u32 flags;
	__u32 pad;
	__u8 comm[16];
};
_Static_assert(sizeof(struct ffaults_count) == 40, "value layout");

struct ffaults_path {
	struct ffaults_file file;
	struct path_names path;
};

/* Keeps the types in BTF, from which the Rust side is generated. */
const struct ffaults_path *ffaults_path_type __attribute__((unused));

const volatile __u8 by_process;

/* Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768); /* --max-entries changes it before load */
	__type(key, struct ffaults_key);
	__type(value, struct ffaults_count);
} counts SEC(".maps");

static __always_inline bool send_path(const struct ffaults_file *id, struct file *file)
{
	struct ffaults_path *out = bpf_ringbuf_reserve(&events, sizeof(*out), 0);

	if (!out)
		return false; /* the next fault tries again */
	out->file = *id;
	path_read(&out->path, file, path_of_file(file));
	bpf_ringbuf_submit(out, 0);
	return true;
}

/* Deleted, or without a name from the start (memfd). */
static __always_inline bool is_deleted(struct file *file, struct inode *inode)
{
	if (!BPF_CORE_READ(inode, i_nlink))
		return true;
	return path_is_unlinked(BPF_CORE_READ(path_of_file(file), dentry));
}

static __always_inline int count(const struct faulter *f, struct file *file, bool major)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct ffaults_key key = {};
	struct ffaults_count *c;

	key.file.inode = BPF_CORE_READ(inode, i_ino);
	key.file.device = BPF_CORE_READ(inode, i_sb, s_dev);
	key.file.generation = BPF_CORE_READ(inode, i_generation);
	if (by_process)
		key.who = faulter_id(f);
	c = bpf_map_lookup_elem(&counts, &key);
	if (!c) {
		struct task_struct *leader = f->leader;
		struct ffaults_count fresh = {};

		bpf_core_read(fresh.comm, sizeof(fresh.comm), &leader->comm);
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&counts, &key, &fresh, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&counts, &key);
		if (!c) {
			count_lost();
			return 0;
		}
	}
	__sync_fetch_and_add(major ? &c->major : &c->minor, 1);
	if (!(c->flags & FILE_NAMED) && send_path(&key.file, file))
		c->flags |= FILE_NAMED;
	if (!(c->flags & FILE_DELETED) && is_deleted(file, inode))
		c->flags |= FILE_DELETED;
	return 0;
}

/* <= 5.8: (vma, address, flags), and accounted by each architecture. */
SEC("fexit/handle_mm_fault")
int BPF_PROG(on_fault, struct vm_area_struct *vma, unsigned long address, unsigned int flags,
	     struct pt_regs *regs, vm_fault_t ret)
{
	struct file *file = vma->vm_file;
	struct faulter f;

	if (!file || !fault_is_complete(ret) || !faulter_find(&f))
		return 0;
	if (!fault_has_mapping(vma, address, ret)) {
		count_lost();
		return 0;
	}
	return count(&f, file, fault_is_major(ret, flags));
}

/* The file of a fault on its way, by thread. */
struct fault_file {
	struct file *file;
	__u64 flags; /* enum fault_flag */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct fault_file);
} entered SEC(".maps");

/* At its return the mapping may be gone: what is needed of it is noted here. */
SEC("kprobe/handle_mm_fault")
int BPF_KPROBE(enter_fault, struct vm_area_struct *vma, unsigned long address, unsigned int flags)
{
	struct fault_file note = {.file = BPF_CORE_READ(vma, vm_file), .flags = flags};
	struct faulter f;

	if (!note.file || !faulter_find(&f))
		return 0;
	/* The kernel follows a limited number of returns at a time: one there, it did not. */
	if (bpf_map_update_elem(&entered, &f.tid, &note, BPF_NOEXIST)) {
		count_lost();
		bpf_map_update_elem(&entered, &f.tid, &note, BPF_EXIST);
	}
	return 0;
}

SEC("kretprobe/handle_mm_fault")
int BPF_KRETPROBE(leave_fault, long ret)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct fault_file *known = bpf_map_lookup_elem(&entered, &tid), note;
	struct faulter f;

	if (!known)
		return 0;
	note = *known;
	bpf_map_delete_elem(&entered, &tid);
	if (!fault_is_complete(ret) || !faulter_find(&f))
		return 0;
	return count(&f, note.file, fault_is_major(ret, note.flags));
}

static __always_inline int count_event(struct bpf_perf_event_data *ctx, bool major)
{
	struct fault_place place = {};
	struct faulter f;

	fault_run();
	if (!faulter_find(&f))
		return 0;
	if (!fault_find(ctx->addr, &place)) {
		count_lost();
		return 0;
	}
	return place.file ? count(&f, place.file, major) : 0;
}

/* PERF_COUNT_SW_PAGE_FAULTS_MIN and _MAJ, fired where the kernel counts. */
SEC("perf_event")
int on_minor(struct bpf_perf_event_data *ctx)
{
	return count_event(ctx, false);
}

SEC("perf_event")
int on_major(struct bpf_perf_event_data *ctx)
{
	return count_event(ctx, true);
}
