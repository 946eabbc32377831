/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * For libbpf's usdt.bpf.h alone, which asks for this header: the system's own
 * needs another one of the compiling machine's architecture. The values are
 * those of include/uapi/asm-generic/errno-base.h.
 */
#ifndef MW_LINUX_ERRNO_H
#define MW_LINUX_ERRNO_H

#define ENOENT 2
#define ESRCH 3
#define EINVAL 22

#endif /* MW_LINUX_ERRNO_H */
