/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Page faults as the kernel accounts them: whose, minor or major, and of what
 * sort. mm_account_fault() (mm/memory.c, since 5.9) adds one to the thread's
 * min_flt or maj_flt for each call of handle_mm_fault() that neither failed nor
 * has to be repeated; what is counted here is the same.
 */
#ifndef MW_FAULT_BPF_H
#define MW_FAULT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "compat.bpf.h"
#include "event.bpf.h"
#include "faulter.bpf.h"
#include "target.bpf.h"

/* enum fault_kind; the order of Kind in src/faults/mod.rs */
#define FAULT_OTHER 0 /* a device, the vdso, hugetlbfs, or not to be told */
#define FAULT_ANON 1  /* anonymous memory touched for the first time */
#define FAULT_FILE 2  /* a page of a file */
#define FAULT_COW 3   /* a write to a private page that was there, write-protected */
#define FAULT_SWAP 4  /* anonymous memory that had been swapped out */
#define FAULT_SHMEM 5 /* tmpfs, shared anonymous and SysV memory */

/* VM_FAULT_ERROR, include/linux/mm_types.h; a macro, so not in BTF */
#define FAULT_FAILED                                                                               \
	(VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV | VM_FAULT_HWPOISON |                   \
	 VM_FAULT_HWPOISON_LARGE | VM_FAULT_FALLBACK)

#define VM_SHARED 0x8	       /* include/linux/mm.h */
#define TMPFS_MAGIC 0x01021994 /* include/uapi/linux/magic.h */
#define S_IFMT 0170000	       /* include/uapi/linux/stat.h */
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define HUGETLBFS_MAGIC 0x958458f6

/* Whether a call of handle_mm_fault() that returned `ret` is one fault more. */
static __always_inline bool fault_is_complete(__u32 ret)
{
	return !(ret & (VM_FAULT_RETRY | FAULT_FAILED));
}

/* A fault whose first try had to wait is a major one, as in mm_account_fault(). */
static __always_inline bool fault_is_major(__u32 ret, __u32 flags)
{
	return (ret & VM_FAULT_MAJOR) || (flags & FAULT_FLAG_TRIED);
}

/*
 * Whether the mapping is still there at the end. A fault that is complete may have
 * given up the lock that keeps it (VM_FAULT_COMPLETED, 6.0: d92725256b4f "mm: avoid
 * unnecessary page fault retires on shared memory types").
 */
static __always_inline bool fault_has_mapping(struct vm_area_struct *vma, __u64 address, __u32 ret)
{
	return !(ret & VM_FAULT_COMPLETED) ||
	       (address >= vma->vm_start && address < vma->vm_end && vma->vm_mm);
}

static __always_inline __u32 fault_kind_of_file(struct file *file)
{
	struct inode *inode;
	unsigned long magic;
	__u32 type;

	if (!file)
		return FAULT_OTHER; /* a special mapping, such as the vdso */
	inode = BPF_CORE_READ(file, f_inode);
	type = BPF_CORE_READ(inode, i_mode) & S_IFMT;
	if (type == S_IFBLK)
		return FAULT_FILE; /* whatever its name lies on */
	if (type != S_IFREG)
		return FAULT_OTHER;
	magic = BPF_CORE_READ(inode, i_sb, s_magic);
	if (magic == TMPFS_MAGIC)
		return FAULT_SHMEM;
	return magic == HUGETLBFS_MAGIC ? FAULT_OTHER : FAULT_FILE;
}

/* By what backs the address. vma_is_anonymous() is the absence of vm_ops. */
static __always_inline __u32 fault_kind_of(struct vm_area_struct *vma)
{
	if (!BPF_CORE_READ(vma, vm_ops))
		return FAULT_ANON;
	return fault_kind_of_file(BPF_CORE_READ(vma, vm_file));
}

/*
 * What is known of a thread's fault before it is complete. With fexit and perf
 * only the few faults that need it have an entry, and `fault_notes_left` tells
 * without a look-up that there is none.
 */
struct fault_note {
	__u64 address; /* of the page; 0: not known */
	__u32 kind;
	__u32 flags; /* enum fault_flag, of a fault seen at its entry */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* thread */
	__type(value, struct fault_note);
} fault_notes SEC(".maps");

__u64 fault_notes_left;

static __always_inline void fault_note_set(__u32 tid, __u64 address, __u32 kind, __u32 flags)
{
	struct fault_note note = {.address = address, .kind = kind, .flags = flags};
	struct fault_note *known = bpf_map_lookup_elem(&fault_notes, &tid);

	if (known) {
		*known = note;
		return;
	}
	if (bpf_map_update_elem(&fault_notes, &tid, &note, BPF_NOEXIST))
		count_lost(); /* full: its sort, or all of it, is not seen */
	else
		__sync_fetch_and_add(&fault_notes_left, 1);
}

/* Takes the note of a thread away; false: there is none. */
static __always_inline bool fault_note_take(__u32 tid, struct fault_note *note)
{
	struct fault_note *known;

	if (!*(volatile __u64 *)&fault_notes_left)
		return false;
	known = bpf_map_lookup_elem(&fault_notes, &tid);
	if (!known)
		return false;
	*note = *known;
	if (!bpf_map_delete_elem(&fault_notes, &tid))
		__sync_fetch_and_add(&fault_notes_left, -1);
	return true;
}

const volatile __u64 fault_page_size = 4096;

/*
 * Whether a note belongs to this fault. do_swap_page() is called outside of
 * faults too, when huge pages are put together.
 */
static __always_inline bool fault_note_is_of(const struct fault_note *note, __u64 address)
{
	return !note->address || address - note->address < fault_page_size;
}

/* In do_swap_page(): what is there is a swap entry. */
static __always_inline void fault_swaps(struct vm_fault *vmf)
{
	__u64 id = bpf_get_current_pid_tgid();

	if (target_has_tgid(id >> 32))
		fault_note_set(id, BPF_CORE_READ(vmf, address), FAULT_SWAP, 0);
}

/* In do_wp_page(): a write to a page that is there and may not be written yet. */
static __always_inline void fault_copies(struct vm_fault *vmf)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id;
	struct fault_note *known;
	__u64 address;

	if (!target_has_tgid(id >> 32))
		return;
	if (BPF_CORE_READ(vmf, vma, vm_flags) & VM_SHARED)
		return; /* only learns that the page becomes dirty */
	address = BPF_CORE_READ(vmf, address);
	known = bpf_map_lookup_elem(&fault_notes, &tid);
	/* do_swap_page() ends in do_wp_page() when it was for a write */
	if (!known || known->kind != FAULT_SWAP || !fault_note_is_of(known, address))
		fault_note_set(tid, address, FAULT_COW, 0);
}

/*
 * How often each CPU ran a program of the page-fault events. The events count by
 * themselves too, whether a program runs or not: the difference is lost.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} fault_runs SEC(".maps");

static __always_inline void fault_run(void)
{
	__u32 zero = 0;
	__u64 *runs = bpf_map_lookup_elem(&fault_runs, &zero);

	if (runs)
		*runs += 1;
}

/* Bits of a page fault's error code on x86 (enum x86_pf_error_code). */
#define PF_PROT 1
#define PF_WRITE 2

/* At the beginning of a fault, for the page-fault events: was the page there? */
static __always_inline void fault_begins(unsigned long address, unsigned long error_code)
{
	struct fault_note stale;
	__u64 id = bpf_get_current_pid_tgid();

	if (!target_has_tgid(id >> 32))
		return;
	if ((error_code & (PF_PROT | PF_WRITE)) == (PF_PROT | PF_WRITE))
		fault_note_set(id, address, FAULT_COW, 0);
	else
		fault_note_take(id, &stale);
}

/* The mapping of an address. */
struct fault_place {
	struct file *file;
	__u64 start;
	__u64 end;
	__u32 kind;
	__u32 shared;
};

/*
 * The mapping found last on each CPU: memory is mostly touched in a row, and
 * bpf_find_vma() was measured to cost 10 us in the events of perf on a virtual
 * machine. Probably because with interrupts off it gives its lock back from an
 * interrupt that it sends itself (bpf_mmap_unlock_mm(), kernel/bpf/mmap_unlock_work.h).
 */
struct fault_found {
	struct mm_struct *mm;
	__u32 tgid;
	__u32 changes; /* changes_of_mm() before it was looked for */
	struct fault_place place;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fault_found);
} fault_found SEC(".maps");

static long fault_look_at(struct task_struct *task, struct vm_area_struct *vma,
			  struct fault_place *place)
{
	place->file = BPF_CORE_READ(vma, vm_file);
	place->start = BPF_CORE_READ(vma, vm_start);
	place->end = BPF_CORE_READ(vma, vm_end);
	place->kind = fault_kind_of(vma);
	place->shared = !!(BPF_CORE_READ(vma, vm_flags) & VM_SHARED);
	return 0;
}

/*
 * Finds the mapping of a fault that is complete; only for programs that nothing
 * preempts. False: somebody waits to change the address space (-EBUSY).
 */
static __always_inline bool fault_find(__u64 address, struct fault_place *place)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mm_struct *mm = task->mm;
	__u32 zero = 0, changes = 0, tgid = task->tgid;
	struct fault_found *found = bpf_map_lookup_elem(&fault_found, &zero);
	bool known = changes_of_mm(mm, &changes);

	if (!found)
		return false;
	if (known && found->mm == mm && found->tgid == tgid && found->changes == changes &&
	    address >= found->place.start && address < found->place.end) {
		*place = found->place;
		return true;
	}
	if (bpf_find_vma(task, address, fault_look_at, place, 0))
		return false;
	found->mm = mm;
	found->tgid = tgid;
	found->changes = changes;
	found->place = *place;
	return true;
}

/* Of a fault that is complete, by where it was and what was noted on the way. */
static __always_inline __u32 fault_kind_noted(const struct fault_place *place, __u32 tid,
					      __u64 address, bool major)
{
	struct fault_note note;

	if (fault_note_take(tid, &note) && fault_note_is_of(&note, address)) {
		if (note.kind == FAULT_SWAP || (note.kind == FAULT_COW && !place->shared))
			return note.kind;
	}
	/* Nothing else makes anonymous memory wait for a device. */
	return major && place->kind == FAULT_ANON ? FAULT_SWAP : place->kind;
}

#endif /* MW_FAULT_BPF_H */
