/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ring every streaming tool writes to, and the count of what did not fit.
 * Reserve, fill, submit; a failed reserve is counted and never silent.
 */
#ifndef MW_EVENT_BPF_H
#define MW_EVENT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* linux/bpf.h, enum: kept as macros so that one header serves every tool. */
#define MW_RB_NO_WAKEUP (1ULL << 0)
#define MW_RB_FORCE_WAKEUP (1ULL << 1)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* bytes; --ring-kib changes it before load */
} events SEC(".maps");

/* Events that happened and could not be delivered. Read by the engine. */
__u64 lost_events;

/* Half of the ring, in bytes; set before load together with its size. */
const volatile __u64 ring_half_bytes = 1 << 19;

static __always_inline void count_lost(void)
{
	/* The result is unused: plain XADD, which every kernel from 5.8 has. */
	__sync_fetch_and_add(&lost_events, 1);
}

/*
 * Waking the reader costs more than the event itself, and the reader comes by
 * at every interval anyway: wake it only when half of the ring is full.
 */
static __always_inline void submit_lazily(void *event)
{
	__u64 flags = MW_RB_NO_WAKEUP;

	if (bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= ring_half_bytes)
		flags = MW_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(event, flags);
}

#endif /* MW_EVENT_BPF_H */
