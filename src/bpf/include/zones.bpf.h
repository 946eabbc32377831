/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a zone of memory holds, as /proc/zoneinfo and /proc/buddyinfo show it.
 * Read without the zone's lock: each number is right by itself.
 */
#ifndef MW_ZONES_BPF_H
#define MW_ZONES_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Orders there is room for; a kernel has 11, or 14 with pages of 64 KiB. */
#define ZONE_ORDERS 16

/* Sizes are in pages. */
struct zone_state {
	__u64 min; /* watermarks as they are compared with: boost included */
	__u64 low;
	__u64 high;
	__u64 boost;
	__u64 free;
	__u64 free_cma; /* of `free`, for movable memory only; 0 without CMA */
	__u64 managed;
	__u64 present;
	__u64 free_blocks[ZONE_ORDERS]; /* by order; those that do not exist are 0 */
	__u32 nid;
	__u32 index;  /* of the zone in its node (enum zone_type) */
	__u32 orders; /* how many exist */
	__u32 pad;
	__u8 name[16];
};
_Static_assert(sizeof(struct zone_state) == 224, "layout");

/* A counter of the zone in pages, as zone_page_state() gives it: never negative. */
static __always_inline __u64 zone_counter(struct zone *zone, __u32 item)
{
	__s64 pages = 0;

	bpf_probe_read_kernel(&pages, sizeof(pages),
			      (void *)zone + bpf_core_field_offset(struct zone, vm_stat) +
				      item * sizeof(pages));
	return pages < 0 ? 0 : pages;
}

static __always_inline __u64 zone_free(struct zone *zone)
{
	return zone_counter(zone, bpf_core_enum_value(enum zone_stat_item, NR_FREE_PAGES));
}

static __always_inline __u64 zone_free_cma(struct zone *zone)
{
	return zone_counter(zone, bpf_core_enum_value(enum zone_stat_item, NR_FREE_CMA_PAGES));
}

/* A watermark without the boost; `mark` is an enum zone_watermarks of this kernel. */
static __always_inline __u64 zone_mark(struct zone *zone, __u32 mark)
{
	__u64 pages = 0;

	bpf_probe_read_kernel(&pages, sizeof(pages),
			      (void *)zone + bpf_core_field_offset(struct zone, _watermark) +
				      mark * sizeof(pages));
	return pages;
}

/* Which zone of its node it is (zone_idx(), include/linux/mmzone.h). */
static __always_inline __u32 zone_index(struct zone *zone)
{
	void *first = (void *)BPF_CORE_READ(zone, zone_pgdat) +
		      bpf_core_field_offset(struct pglist_data, node_zones);

	return ((__u64)zone - (__u64)first) / bpf_core_type_size(struct zone);
}

/* The number of orders this kernel has, at most ZONE_ORDERS. A load-time constant. */
static __always_inline __u32 zone_orders(struct zone *zone)
{
	__u32 orders =
		bpf_core_field_size(zone->free_area) / bpf_core_type_size(struct free_area);

	return orders < ZONE_ORDERS ? orders : ZONE_ORDERS;
}

/* Free blocks of an order; the size of an entry differs between kernels. */
static __always_inline __u64 zone_free_blocks(struct zone *zone, __u32 order)
{
	__u64 blocks = 0;

	bpf_probe_read_kernel(&blocks, sizeof(blocks),
			      (void *)zone + bpf_core_field_offset(struct zone, free_area) +
				      order * bpf_core_type_size(struct free_area) +
				      bpf_core_field_offset(struct free_area, nr_free));
	return blocks;
}

/* Fills `state`, which is too large for the stack of a program. */
static __always_inline void zone_read(struct zone *zone, struct zone_state *state)
{
	const char *name = BPF_CORE_READ(zone, name);
	__u32 orders = zone_orders(zone);
	__u64 boost = BPF_CORE_READ(zone, watermark_boost);

	state->min = zone_mark(zone, bpf_core_enum_value(enum zone_watermarks, WMARK_MIN)) + boost;
	state->low = zone_mark(zone, bpf_core_enum_value(enum zone_watermarks, WMARK_LOW)) + boost;
	state->high =
		zone_mark(zone, bpf_core_enum_value(enum zone_watermarks, WMARK_HIGH)) + boost;
	state->boost = boost;
	state->free = zone_free(zone);
	state->free_cma = zone_free_cma(zone);
	state->managed = BPF_CORE_READ(zone, managed_pages.counter);
	state->present = BPF_CORE_READ(zone, present_pages);
	for (__u32 order = 0; order < ZONE_ORDERS; order++)
		state->free_blocks[order] = order < orders ? zone_free_blocks(zone, order) : 0;
	state->nid = BPF_CORE_READ(zone, zone_pgdat, node_id);
	state->index = zone_index(zone);
	state->orders = orders;
	state->pad = 0;
	bpf_probe_read_kernel_str(state->name, sizeof(state->name), name);
}

#endif /* MW_ZONES_BPF_H */
