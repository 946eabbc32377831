// SPDX-License-Identifier: GPL-2.0-only
/*
 * paf: requests for pages, by process, zone, order and flags; each request, or
 * each that got nothing.
 *
 * mm_page_alloc fires once for each request, with the page or without one. What
 * the allocator was allowed to do is an argument of get_page_from_freelist(),
 * which is called once for each attempt: the last attempt is noted, and taken
 * over by the tracepoint.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "cgroup.bpf.h"
#include "event.bpf.h"
#include "faulter.bpf.h"
#include "nodes.bpf.h"
#include "target.bpf.h"
#include "zones.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* A node has so many places in `zones`: ZONES_PER_NODE of src/zones.rs. */
#define ZONES_PER_NODE 8

/* What is not known. */
#define ZONE_UNKNOWN 0xffff
#define FLAGS_UNKNOWN 0xffffffff

/* include/linux/gfp.h; these bits are the same on every kernel since 5.8. */
#define GFP_DMA_BIT 0x1
#define GFP_HIGHMEM_BIT 0x2
#define GFP_DMA32_BIT 0x4
#define GFP_MOVABLE_BIT 0x8
#define GFP_DIRECT_RECLAIM_BIT 0x400
#define GFP_HARDWALL_BIT 0x100000
#define GFP_THISNODE_BIT 0x200000
#define GFP_ACCOUNT_BIT 0x400000

/* mm/internal.h; these bits too, whatever their names (src/gfp.rs). */
#define ALLOC_MARK 0x3
#define ALLOC_NO_MARK 0x4
#define ALLOC_OOM 0x8
#define ALLOC_HARDER 0x10
#define ALLOC_HIGH 0x20
#define ALLOC_CMA 0x80
#define ALLOC_HIGHATOMIC 0x200

/* Modes, --events and --failed. */
#define MODE_COUNT 0
#define MODE_EVENTS 1
#define MODE_FAILED 2

const volatile __u8 mode;

/* What is counted together. */
struct paf_key {
	__u64 who; /* faulter_id() */
	__u32 gfp;
	__u32 alloc_flags; /* of the last attempt, or FLAGS_UNKNOWN */
	__u16 zone;	   /* place in `zones`, or ZONE_UNKNOWN */
	__u8 order;
	__u8 pad[5];
};
_Static_assert(sizeof(struct paf_key) == 24, "key layout");

struct paf_count {
	__u64 requests;
	__u64 failed; /* of them, those that got nothing */
	__u8 comm[16];
};
_Static_assert(sizeof(struct paf_count) == 32, "value layout");

/* Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768); /* --max-entries changes it before load */
	__type(key, struct paf_key);
	__type(value, struct paf_count);
} counts SEC(".maps");

/* One request. Sizes in pages, as the zone was just after it. */
struct paf_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 min;
	__u64 low;
	__u64 high;
	__u64 free;
	__u64 present;
	__u32 tgid;
	__u32 tid;
	__u32 gfp;
	__u32 alloc_flags;
	__u16 zone;
	__u8 order;
	__u8 failed;
	__u32 pad;
	__u8 comm[16];
};
_Static_assert(sizeof(struct paf_event) == 88, "event layout");

/* What kept a request from getting a page; the order of Reason in src/cmd/paf.rs. */
#define REASON_ROOM 0 /* nothing that can be seen afterwards */
#define REASON_WATERMARK 1
#define REASON_CMA 2
#define REASON_FRAGMENTED 3
#define REASON_CGROUP 4

#define FRAMES 64

/* A request that got nothing. */
struct paf_failure {
	struct paf_event event;
	__u64 who;    /* faulter_id() */
	__u64 cgroup; /* whose charge was refused, or 0 */
	__u32 pages;  /* asked for */
	__u32 reason;
	__u32 kernel_frames;
	__u32 user_frames;
	__u64 kernel[FRAMES]; /* innermost first */
	__u64 user[FRAMES];
};
_Static_assert(sizeof(struct paf_failure) == 88 + 32 + 2 * 8 * FRAMES, "event layout");

/* A zone, for reports; `round` tells a fresh copy from one of a zone that has gone. */
struct paf_zone {
	struct zone_state state;
	__u64 zone; /* its address */
	__u64 round;
};
_Static_assert(sizeof(struct paf_zone) == 240, "value layout");

/* Keep the types in BTF, from which the Rust side is generated. */
const struct paf_key *paf_key_type __attribute__((unused));
const struct paf_count *paf_count_type __attribute__((unused));
const struct paf_event *paf_event_type __attribute__((unused));
const struct paf_failure *paf_failure_type __attribute__((unused));
const struct paf_zone *paf_zone_type __attribute__((unused));

/* By node * ZONES_PER_NODE + zone of that node. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8); /* zones the possible nodes can have, set before load */
	__type(key, __u32);
	__type(value, struct paf_zone);
} zones SEC(".maps");

__u64 rounds; /* readings done */

/*
 * Where the flags of a page hold its zone and its node: the topmost bits
 * (include/linux/page-flags-layout.h; sections need none where the memory map is
 * virtual, as on every 64-bit kernel we know).
 */
__u32 zone_shift;
__u32 zone_bits;
__u32 node_bits;

static __always_inline __u32 bits_for(__u32 values)
{
	__u32 bits = 0;

	for (int i = 0; i < 16; i++) {
		if ((1U << i) < values)
			bits = i + 1;
	}
	return bits;
}

static __always_inline void learn_layout(void)
{
	__u32 kinds = bpf_core_enum_value(enum zone_type, __MAX_NR_ZONES);
	/* each zonelist ends with an empty place */
	__u32 places = bpf_core_field_size(((struct zonelist *)0)->_zonerefs) /
		       bpf_core_type_size(struct zoneref);

	zone_bits = bits_for(kinds);
	node_bits = bits_for((places - 1) / kinds);
	zone_shift = 64 - node_bits - zone_bits;
}

SEC("raw_tp")
int learn_memcg(void *ctx)
{
	node_learn_of_memcg();
	return 0;
}

SEC("raw_tp")
int learn_ksym(void *ctx)
{
	node_learn_of_symbol();
	return 0;
}

SEC("raw_tp")
int read_zones(void *ctx)
{
	__u64 now = rounds + 1;

	learn_layout();
	if (!first_node)
		return 0;
	for (__u32 i = 0; i < MAX_ZONES && i < zone_slots; i++) {
		struct zone *zone = zone_at(i);
		struct paf_zone *z;
		__u32 place;

		if (!zone)
			break;
		place = BPF_CORE_READ(zone, zone_pgdat, node_id) * ZONES_PER_NODE +
			zone_index(zone);
		z = bpf_map_lookup_elem(&zones, &place);
		if (!z)
			continue;
		zone_read(zone, &z->state);
		z->zone = (__u64)zone;
		z->round = now;
	}
	rounds = now;
	return 0;
}

/*
 * page->flags: a number, or a structure around one (seen in 6.18, not in 6.12).
 * Its place is the same: the first member.
 */
static __always_inline __u32 zone_of_page(struct page *page)
{
	__u32 node, zone;
	__u64 flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), page);
	zone = (flags >> (zone_shift & 63)) & ((1U << (zone_bits & 15)) - 1);
	node = (flags >> 1) >> ((zone_shift + zone_bits - 1) & 63);
	return node * ZONES_PER_NODE + zone;
}

static __always_inline __u32 place_of_zone(struct zone *zone)
{
	if (!zone)
		return ZONE_UNKNOWN;
	return BPF_CORE_READ(zone, zone_pgdat, node_id) * ZONES_PER_NODE + zone_index(zone);
}

/* The last attempt on this CPU. */
struct attempt {
	__u32 tid;
	__u32 gfp;
	__u32 order;
	__u32 alloc_flags;
	struct alloc_context *ac; /* on the stack of whoever attempts */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct attempt);
} attempts SEC(".maps");

/* What an attempt may change in the flags of its request. */
#define GFP_BESIDE (GFP_HARDWALL_BIT | GFP_DIRECT_RECLAIM_BIT)

static __always_inline int attempt(gfp_t gfp, unsigned int order, int alloc_flags,
				   const struct alloc_context *ac)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct attempt *a;
	__u32 zero = 0;

	if (!target_has_tgid(id >> 32))
		return 0;
	a = bpf_map_lookup_elem(&attempts, &zero);
	if (!a)
		return 0;
	a->tid = id;
	a->gfp = gfp & ~GFP_BESIDE;
	a->order = order;
	a->alloc_flags = alloc_flags;
	a->ac = (void *)ac;
	return 0;
}

SEC("fentry/get_page_from_freelist")
int BPF_PROG(fentry_attempt, gfp_t gfp, unsigned int order, int alloc_flags,
	     const struct alloc_context *ac)
{
	if (!first_node)
		node_learn(BPF_CORE_READ(ac, preferred_zoneref, zone, zone_pgdat));
	return attempt(gfp, order, alloc_flags, ac);
}

SEC("kprobe/get_page_from_freelist")
int BPF_KPROBE(kprobe_attempt, gfp_t gfp, unsigned int order, int alloc_flags,
	       const struct alloc_context *ac)
{
	if (!first_node)
		node_learn(BPF_CORE_READ(ac, preferred_zoneref, zone, zone_pgdat));
	return attempt(gfp, order, alloc_flags, ac);
}

/*
 * The attempt that belongs to this request; NULL: none is known. An interrupt
 * that asks for pages too, or a move to another CPU, may have replaced it.
 */
static __always_inline struct attempt *attempt_of(__u32 tid, gfp_t gfp, unsigned int order)
{
	struct attempt *a;
	__u32 zero = 0;

	a = bpf_map_lookup_elem(&attempts, &zero);
	if (!a || !a->ac || a->tid != tid || a->order != order || a->gfp != (gfp & ~GFP_BESIDE))
		return NULL;
	return a;
}

static __always_inline struct zone *zone_wished_for(const struct attempt *a)
{
	struct alloc_context *ac = a->ac;

	return BPF_CORE_READ(ac, preferred_zoneref, zone);
}

static __always_inline int count(const struct faulter *f, __u32 gfp, __u32 alloc_flags, __u32 zone,
				 __u32 order, bool failed)
{
	struct paf_key key = {
		.who = faulter_id(f),
		.gfp = gfp,
		.alloc_flags = alloc_flags,
		.zone = zone,
		.order = order,
	};
	struct paf_count *c = bpf_map_lookup_elem(&counts, &key);

	if (!c) {
		struct task_struct *leader = f->leader;
		struct paf_count fresh = {};

		bpf_core_read(fresh.comm, sizeof(fresh.comm), &leader->comm);
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&counts, &key, &fresh, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&counts, &key);
		if (!c) {
			count_lost();
			return 0;
		}
	}
	__sync_fetch_and_add(&c->requests, 1);
	if (failed)
		__sync_fetch_and_add(&c->failed, 1);
	return 0;
}

static __always_inline void fill(struct paf_event *event, const struct faulter *f, __u32 gfp,
				 __u32 alloc_flags, __u32 place, __u32 order, bool failed)
{
	struct paf_zone *z = bpf_map_lookup_elem(&zones, &place);
	struct zone *zone = z ? (struct zone *)z->zone : NULL;
	struct task_struct *leader = f->leader;

	event->time_ns = bpf_ktime_get_ns();
	event->min = event->low = event->high = event->free = event->present = 0;
	if (zone) {
		__u64 boost = BPF_CORE_READ(zone, watermark_boost);

		event->min = zone_mark(zone, bpf_core_enum_value(enum zone_watermarks, WMARK_MIN)) +
			     boost;
		event->low = zone_mark(zone, bpf_core_enum_value(enum zone_watermarks, WMARK_LOW)) +
			     boost;
		event->high =
			zone_mark(zone, bpf_core_enum_value(enum zone_watermarks, WMARK_HIGH)) +
			boost;
		event->free = zone_free(zone);
		event->present = BPF_CORE_READ(zone, present_pages);
	}
	event->tgid = f->tgid;
	event->tid = f->tid;
	event->gfp = gfp;
	event->alloc_flags = alloc_flags;
	event->zone = zone ? place : ZONE_UNKNOWN;
	event->order = order;
	event->failed = failed;
	event->pad = 0;
	bpf_core_read(event->comm, sizeof(event->comm), &leader->comm);
}

/* Free blocks of at least that order. No branches: the verifier follows each. */
static __always_inline __u64 blocks_from(struct zone *zone, __u32 order)
{
	__u32 orders = zone_orders(zone);
	__u64 blocks = 0;

	/* 5.10 takes no loop that a call leads back into */
#pragma unroll
	for (__u32 i = 0; i < ZONE_ORDERS; i++) {
		/* all ones from `order` on */
		__u64 mask = (((__u64)i - order) >> 63) - 1;

		if (i < orders)
			blocks += zone_free_blocks(zone, i) & mask;
	}
	return blocks;
}

/*
 * What stood in the way of a request in one zone, as __zone_watermark_ok()
 * decides (mm/page_alloc.c), but just afterwards. This one and the next are
 * functions of their own, so that the verifier walks each once.
 */
__noinline int reason_in(__u64 address, __u32 order, __u32 flags, __u32 highest)
{
	struct zone *zone = (void *)address;
	__s64 free = zone_free(zone), cma = 0;
	__u64 mark = 0; /* there is no division of signed numbers */
	unsigned long reserve = 0;

	if (flags == FLAGS_UNKNOWN)
		flags = bpf_core_enum_value(enum zone_watermarks, WMARK_MIN);
	free -= (1LL << (order & 31)) - 1;
	if (!(flags & (ALLOC_OOM | ALLOC_HARDER | ALLOC_HIGHATOMIC)))
		free -= BPF_CORE_READ(zone, nr_reserved_highatomic);
	if (!(flags & ALLOC_CMA))
		cma = zone_free_cma(zone);
	if (!(flags & ALLOC_NO_MARK)) {
		mark = zone_mark(zone, flags & ALLOC_MARK) + BPF_CORE_READ(zone, watermark_boost);
		if (flags & ALLOC_HIGH)
			mark -= mark / 2;
		if (flags & ALLOC_OOM)
			mark -= mark / 2;
		else if (flags & ALLOC_HARDER)
			mark -= mark / 4;
		bpf_probe_read_kernel(&reserve, sizeof(reserve),
				      (void *)zone +
					      bpf_core_field_offset(struct zone, lowmem_reserve) +
					      (highest & (ZONES_PER_NODE - 1)) * sizeof(reserve));
		mark += reserve;
	}
	if (free <= (__s64)mark)
		return REASON_WATERMARK;
	if (free - cma <= (__s64)mark)
		return REASON_CMA;
	return blocks_from(zone, order) ? REASON_ROOM : REASON_FRAGMENTED;
}

/* The highest zone such a request may use (gfp_zone(), include/linux/gfp.h). */
static __always_inline __u32 highest_zone(__u32 gfp)
{
	if (gfp & GFP_DMA_BIT && bpf_core_enum_value_exists(enum zone_type, ZONE_DMA))
		return bpf_core_enum_value(enum zone_type, ZONE_DMA);
	if (gfp & GFP_DMA32_BIT && bpf_core_enum_value_exists(enum zone_type, ZONE_DMA32))
		return bpf_core_enum_value(enum zone_type, ZONE_DMA32);
	if ((gfp & (GFP_HIGHMEM_BIT | GFP_MOVABLE_BIT)) == (GFP_HIGHMEM_BIT | GFP_MOVABLE_BIT))
		return bpf_core_enum_value(enum zone_type, ZONE_MOVABLE);
	return bpf_core_enum_value(enum zone_type, ZONE_NORMAL);
}

#define ANY_NODE 0xffffffff

/* Of all zones a request may use, the one that came nearest to serving it. */
__noinline int reason_of(__u32 order, __u32 flags, __u32 highest, __u32 nid)
{
	__u32 reason = REASON_WATERMARK;
	bool room = false;

	for (__u32 place = 0; place < MAX_ZONES && place < zone_slots; place++) {
		__u32 slot = place, found;
		struct paf_zone *z = bpf_map_lookup_elem(&zones, &slot);

		if (!z || !z->zone || place % ZONES_PER_NODE > highest)
			continue;
		if (nid != ANY_NODE && place / ZONES_PER_NODE != nid)
			continue;
		found = reason_in(z->zone, order, flags, highest);
		if (found == REASON_ROOM)
			room = true;
		else if (found > reason)
			reason = found;
	}
	return room ? REASON_ROOM : reason;
}

/* What a charge that was refused was for: its page is given back, and none returned. */
struct refusal {
	__u32 gfp;
	__u32 pages;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32); /* thread */
	__type(value, struct refusal);
} refusals SEC(".maps");

__u64 refusals_left;

static __always_inline bool refusal_take(__u32 tid, __u32 gfp, __u32 order)
{
	struct refusal *known;
	bool is_it;

	if (!*(volatile __u64 *)&refusals_left)
		return false;
	known = bpf_map_lookup_elem(&refusals, &tid);
	if (!known)
		return false;
	is_it = known->pages == 1U << (order & 31) &&
		(known->gfp & ~GFP_BESIDE) == (gfp & ~GFP_BESIDE);
	if (!bpf_map_delete_elem(&refusals, &tid))
		__sync_fetch_and_add(&refusals_left, -1);
	return is_it;
}

/* Fills the stacks of a failure; the event is ours and large enough. */
static __always_inline void fill_stacks(void *ctx, struct paf_failure *event)
{
	long got = bpf_get_stack(ctx, event->kernel, sizeof(event->kernel), 0);

	event->kernel_frames = got > 0 ? (__u32)got / 8 : 0;
	got = bpf_get_stack(ctx, event->user, sizeof(event->user), BPF_F_USER_STACK);
	event->user_frames = got > 0 ? (__u32)got / 8 : 0;
}

static __always_inline int failure(void *ctx, const struct faulter *f, __u32 gfp, __u32 alloc_flags,
				   __u32 zone, __u32 order, __u32 pages, __u32 reason, __u64 cgroup)
{
	struct paf_failure *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count_lost();
		return 0;
	}
	fill(&event->event, f, gfp, alloc_flags, zone, order, true);
	event->who = faulter_id(f);
	event->cgroup = cgroup;
	event->pages = pages;
	event->reason = reason;
	fill_stacks(ctx, event);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Out of line: a request that failed is rare. */
static __noinline int failed(void *ctx, const struct faulter *f, __u32 gfp, __u32 order,
			     struct attempt *a)
{
	__u32 place = ZONE_UNKNOWN, flags = FLAGS_UNKNOWN, nid = ANY_NODE;
	__u32 highest = highest_zone(gfp);

	if (a) {
		struct alloc_context *ac = a->ac;

		flags = a->alloc_flags;
		highest = BPF_CORE_READ(ac, highest_zoneidx);
		place = place_of_zone(zone_wished_for(a));
		if (gfp & GFP_THISNODE_BIT)
			nid = place / ZONES_PER_NODE;
		a->ac = NULL;
	}
	return failure(ctx, f, gfp, flags, place, order, 1U << (order & 31),
		       reason_of(order, flags, highest, nid), 0);
}

SEC("tp_btf/mm_page_alloc")
int BPF_PROG(on_alloc, struct page *page, unsigned int order, gfp_t gfp)
{
	__u32 place = ZONE_UNKNOWN, alloc_flags = FLAGS_UNKNOWN;
	struct paf_event *event;
	struct attempt *a;
	struct faulter f;

	if (mode == MODE_FAILED && page && !refusals_left)
		return 0;
	if (!faulter_find(&f))
		return 0;
	if (mode == MODE_FAILED) {
		/* a charge that was refused has been told already */
		if (refusal_take(f.tid, gfp, order) || page)
			return 0;
		return failed(ctx, &f, gfp, order, attempt_of(f.tid, gfp, order));
	}
	a = attempt_of(f.tid, gfp, order);
	if (a)
		alloc_flags = a->alloc_flags;
	if (page)
		place = zone_of_page(page);
	else if (a)
		place = place_of_zone(zone_wished_for(a));
	if (a)
		a->ac = NULL; /* it points to where soon something else will be */
	if (mode == MODE_COUNT)
		return count(&f, gfp, alloc_flags, place, order, !page);
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost();
		return 0;
	}
	fill(event, &f, gfp, alloc_flags, place, order, !page);
	submit_lazily(event);
	return 0;
}

static __always_inline int charged(void *ctx, struct mem_cgroup *memcg, gfp_t gfp,
				   unsigned int pages, long ret)
{
	struct refusal refusal = {.gfp = gfp, .pages = pages};
	struct faulter f;

	if (!ret || !faulter_find(&f))
		return 0;
	if (gfp & GFP_ACCOUNT_BIT && !bpf_map_update_elem(&refusals, &f.tid, &refusal, BPF_NOEXIST))
		__sync_fetch_and_add(&refusals_left, 1);
	return failure(ctx, &f, gfp, FLAGS_UNKNOWN, ZONE_UNKNOWN, bits_for(pages), pages,
		       REASON_CGROUP, cgroup_id(cgroup_of_memcg(memcg)));
}

SEC("fexit/try_charge_memcg")
int BPF_PROG(fexit_charge, struct mem_cgroup *memcg, gfp_t gfp, unsigned int pages, int ret)
{
	return charged(ctx, memcg, gfp, pages, ret);
}

/* <= 5.12 (seen in 5.10): the same under another name. */
SEC("fexit/try_charge")
int BPF_PROG(fexit_trycharge, struct mem_cgroup *memcg, gfp_t gfp, unsigned int pages, int ret)
{
	return charged(ctx, memcg, gfp, pages, ret);
}

/* A charge under way, by thread: at its return nothing of it is known. */
struct charge {
	__u64 memcg;
	__u32 gfp;
	__u32 pages;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct charge);
} charges SEC(".maps");

SEC("kprobe")
int BPF_KPROBE(enter_charge, struct mem_cgroup *memcg, gfp_t gfp, unsigned int pages)
{
	struct charge charge = {(__u64)memcg, gfp, pages};
	struct faulter f;

	if (faulter_find(&f) && bpf_map_update_elem(&charges, &f.tid, &charge, BPF_ANY))
		count_lost();
	return 0;
}

SEC("kretprobe")
int BPF_KRETPROBE(leave_charge, long ret)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct charge *known = bpf_map_lookup_elem(&charges, &tid), charge;

	if (!known)
		return 0;
	charge = *known;
	bpf_map_delete_elem(&charges, &tid);
	return charged(ctx, (void *)charge.memcg, charge.gfp, charge.pages, (int)ret);
}
