/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The path of an open file as the calling process sees it: as d_path() makes it
 * (fs/d_path.c), with mounts crossed up to the process's root. Names are stored
 * from the last to the first, each with its terminator, and put together by user
 * space (src/names.rs).
 */
#ifndef MW_PATH_BPF_H
#define MW_PATH_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* The including file may want more: a power of two, PATH_MAX (4096) at most. */
#ifndef PATH_BYTES
#define PATH_BYTES 512
#endif
#define PATH_NAME 256 /* NAME_MAX and the terminator */
#ifndef PATH_NAMES
#define PATH_NAMES 40 /* names and mounts that are looked at */
#endif

#define PATH_PSEUDO 1u	 /* a file without a path: memfd:, anon_hugepage */
#define PATH_UNLINKED 2u /* deleted */
#define PATH_CUT 4u	 /* there is more, nearer to the root */

struct path_names {
	__u32 bytes; /* of `names` in use */
	__u32 flags;
	__u64 magic; /* of the file system: pseudo files are named after theirs */
	__u64 inode;
	__u8 names[PATH_BYTES + PATH_NAME];
};

/* The file behind a descriptor of the calling process; NULL: none. */
static __always_inline struct file *file_of(__u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file *file = NULL;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), BPF_CORE_READ(table, fd) + fd);
	return file;
}

/* d_unlinked(), include/linux/dcache.h */
static __always_inline bool path_is_unlinked(struct dentry *dentry)
{
	return !BPF_CORE_READ(dentry, d_hash.pprev) && BPF_CORE_READ(dentry, d_parent) != dentry;
}

/* `path` is the file's own, or the one its user knows it by (path_of_file()). */
static __noinline int path_read(struct path_names *p, struct file *file, const struct path *path)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct dentry *root = BPF_CORE_READ(task, fs, root.dentry);
	struct vfsmount *root_mount = BPF_CORE_READ(task, fs, root.mnt);
	struct dentry *dentry = BPF_CORE_READ(path, dentry);
	struct vfsmount *mount = BPF_CORE_READ(path, mnt);

	p->bytes = 0;
	p->flags = 0;
	p->magic = BPF_CORE_READ(mount, mnt_sb, s_magic);
	p->inode = BPF_CORE_READ(file, f_inode, i_ino);
	if (path_is_unlinked(dentry))
		p->flags = PATH_UNLINKED;
	for (int i = 0; i < PATH_NAMES; i++) {
		struct dentry *top, *parent;
		/* from memory, so that the verifier cannot tell one way here from another */
		__u32 at = *(volatile __u32 *)&p->bytes;
		long length;

		if (dentry == root && mount == root_mount)
			return 0;
		top = BPF_CORE_READ(mount, mnt_root);
		if (dentry == top) {
			/* struct vfsmount is embedded in struct mount (fs/mount.h) */
			struct mount *inner =
				(void *)mount - bpf_core_field_offset(struct mount, mnt);
			struct mount *outer = BPF_CORE_READ(inner, mnt_parent);

			if (outer == inner)
				return 0;
			dentry = BPF_CORE_READ(inner, mnt_mountpoint);
			mount = (void *)outer + bpf_core_field_offset(struct mount, mnt);
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		if (at >= PATH_BYTES)
			break;
		length = bpf_probe_read_kernel_str(&p->names[at & (PATH_BYTES - 1)], PATH_NAME,
						   BPF_CORE_READ(dentry, d_name.name));
		if (length <= 0)
			break;
		p->bytes = at + ((__u32)length & (2 * PATH_NAME - 1));
		if (parent == dentry) {
			p->flags = PATH_PSEUDO;
			return 0;
		}
		dentry = parent;
	}
	p->flags |= PATH_CUT;
	return 0;
}

#endif /* MW_PATH_BPF_H */
