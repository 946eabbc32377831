// SPDX-License-Identifier: GPL-2.0-only
/*
 * pr: what page reclaim looks at and what it gets, call by call.
 *
 * The kernel takes pages off a list (isolate_lru_folios(), or evict_folios() where
 * lists are by generation) and hands them to shrink_folio_list(). What it counts as
 * scanned (pgscan_*) is known at the first, what it reclaims (pgsteal_*) at the
 * second; a note of the thread carries the one to the other.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "cgroup.bpf.h"
#include "compat.bpf.h"
#include "event.bpf.h"
#include "target.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* Who reclaims. */
#define KSWAPD 1
#define DIRECT 2
#define MEMCG 3
#define PROACTIVE 4
#define KHUGEPAGED 5
#define PAGEOUT 6
#define OTHER 7

/* Looking at an active list is no scan (LRU_ACTIVE, include/linux/mmzone.h). */
#define IS_ACTIVE(lru) ((lru)&1)

#define NO_NODE 0xffffffff
#define PRIORITIES 16 /* DEF_PRIORITY is 12 (include/linux/mmzone.h) */

struct pr_key {
	__u64 cgroup; /* whose limit is the cause; 0: none, or not known */
	__u32 tgid;
	__u32 nid;
	__u32 who;
	__u32 pad;
};
_Static_assert(sizeof(struct pr_key) == 24, "key layout");

/* Sums over calls, in pages unless said otherwise. */
struct pr_sums {
	__u64 calls; /* of shrink_folio_list() */
	__u64 wanted;
	__u64 scanned;
	__u64 reclaimed;
	__u64 dirty;
	__u64 unqueued;
	__u64 congested;
	__u64 writeback;
	__u64 immediate;
	__u64 priorities[PRIORITIES]; /* how often each */
	__u8 comm[16];
};
_Static_assert(sizeof(struct pr_sums) == 216, "value layout");

/* One call, or one scan that found nothing to hand over. */
struct pr_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 cgroup;
	__u64 calls; /* 1, or 0 for a scan that found nothing */
	__u64 wanted;
	__u64 scanned;
	__u64 reclaimed;
	__u64 dirty;
	__u64 unqueued;
	__u64 congested;
	__u64 writeback;
	__u64 immediate;
	__u32 tgid;
	__u32 nid;
	__u32 who;
	__u32 priority;
	__u8 comm[16];
};
_Static_assert(sizeof(struct pr_event) == 120, "event layout");

/* Keep the types in BTF, from which the Rust side is generated. */
const struct pr_key *pr_key_type __attribute__((unused));
const struct pr_event *pr_event_type __attribute__((unused));

const volatile __u8 every_call;
const volatile __u8 by_process = 1;
const volatile __u8 sees_evict; /* the programs on evict_folios() are attached */
const volatile __u32 only_node = NO_NODE;

/* Lists are by generation: the tracepoints mean something else by "scanned". */
SEC(".data") __u8 by_generation = 0;

/* Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* --max-entries changes it before load */
	__type(key, struct pr_key);
	__type(value, struct pr_sums);
} sums SEC(".maps");

/* What a thread is at, from one hook to the next. */
struct pr_note {
	__u64 scanned; /* and not yet accounted for */
	__u64 looked;  /* by the scan under way */
	__u64 before;  /* scan_control.nr_scanned when the call began */
	__u64 pgdat;
	__u64 sc;
	__u64 stat;
	__u64 lruvec;
	__u64 nr_scanned; /* where isolate_lru_folios() says how many */
	__u32 who;	  /* tracepoints only */
	__u32 outer;	  /* tracepoints only: who goes on afterwards */
	__u32 nid;
	__u8 has_nid;
	__u8 fresh;    /* within evict_folios(), before its first call */
	__u8 scanning; /* within isolate_lru_folios() */
	__u8 shrinking;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32); /* tid */
	__type(value, struct pr_note);
} notes SEC(".maps");

static const struct pr_note no_note;
static const struct pr_sums no_sums;

/* What is known of one call. */
struct call {
	struct pr_key key;
	__u64 calls;
	__u64 wanted;
	__u64 scanned;
	__u64 reclaimed;
	__u32 dirty;
	__u32 unqueued;
	__u32 congested;
	__u32 writeback;
	__u32 immediate;
	__u32 priority;
};

static __always_inline __u32 tid_here(void)
{
	return (__u32)bpf_get_current_pid_tgid();
}

static __always_inline struct pr_note *note_here(void)
{
	__u32 tid = tid_here();

	return bpf_map_lookup_elem(&notes, &tid);
}

/* The same, made if there is none; NULL, and counted as lost: no room. */
static __always_inline struct pr_note *note_made(void)
{
	__u32 tid = tid_here();
	struct pr_note *note = bpf_map_lookup_elem(&notes, &tid);

	if (note)
		return note;
	bpf_map_update_elem(&notes, &tid, &no_note, BPF_NOEXIST);
	note = bpf_map_lookup_elem(&notes, &tid);
	if (!note)
		count_lost();
	return note;
}

static __always_inline void note_drop(void)
{
	__u32 tid = tid_here();

	bpf_map_delete_elem(&notes, &tid);
}

static __always_inline bool wanted_here(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!target_has_tgid(bpf_get_current_pid_tgid() >> 32))
		return false;
	return target_has_comm(BPF_CORE_READ(task, group_leader)) && target_has_cgroup(task);
}

static __always_inline void read_comm(__u8 *comm)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	task = BPF_CORE_READ(task, group_leader);
	bpf_core_read(comm, 16, &task->comm);
}

static __always_inline void send(const struct call *c)
{
	struct pr_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count_lost();
		return;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->cgroup = c->key.cgroup;
	event->calls = c->calls;
	event->wanted = c->wanted;
	event->scanned = c->scanned;
	event->reclaimed = c->reclaimed;
	event->dirty = c->dirty;
	event->unqueued = c->unqueued;
	event->congested = c->congested;
	event->writeback = c->writeback;
	event->immediate = c->immediate;
	event->tgid = c->key.tgid;
	event->nid = c->key.nid;
	event->who = c->key.who;
	event->priority = c->priority;
	read_comm(event->comm);
	submit_lazily(event);
}

static __always_inline void account(struct call *c)
{
	struct pr_sums *s;

	c->key.tgid = by_process || every_call ? bpf_get_current_pid_tgid() >> 32 : 0;
	c->key.pad = 0;
	if (every_call) {
		send(c);
		return;
	}
	s = bpf_map_lookup_elem(&sums, &c->key);
	if (!s) {
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&sums, &c->key, &no_sums, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&sums, &c->key);
		if (!s) {
			count_lost();
			return;
		}
		if (by_process)
			read_comm(s->comm);
	}
	__sync_fetch_and_add(&s->calls, c->calls);
	__sync_fetch_and_add(&s->wanted, c->wanted);
	__sync_fetch_and_add(&s->scanned, c->scanned);
	__sync_fetch_and_add(&s->reclaimed, c->reclaimed);
	__sync_fetch_and_add(&s->dirty, c->dirty);
	__sync_fetch_and_add(&s->unqueued, c->unqueued);
	__sync_fetch_and_add(&s->congested, c->congested);
	__sync_fetch_and_add(&s->writeback, c->writeback);
	__sync_fetch_and_add(&s->immediate, c->immediate);
	__sync_fetch_and_add(&s->priorities[c->priority & (PRIORITIES - 1)], 1);
}

static __always_inline bool is_kswapd(struct task_struct *task)
{
	return BPF_CORE_READ(task, flags) & PF_KSWAPD;
}

/* khugepaged has no flag of its own; only a kernel thread can be it. */
static __always_inline bool is_khugepaged(struct task_struct *task)
{
	static const char name[] = "khugepaged";
	char comm[16] = {};

	if (!(BPF_CORE_READ(task, flags) & PF_KTHREAD))
		return false;
	bpf_core_read(comm, sizeof(comm), &task->comm);
	for (int i = 0; i < (int)sizeof(name); i++)
		if (comm[i] != name[i])
			return false;
	return true;
}

/* Who, for whom and how urgently, as the kernel has it. */
static __always_inline void read_control(struct call *c, struct scan_control *sc)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mem_cgroup *target = BPF_CORE_READ(sc, target_mem_cgroup);
	bool proactive = false;

	if (bpf_core_field_exists(sc->proactive))
		proactive = BPF_CORE_READ_BITFIELD_PROBED(sc, proactive);
	c->wanted = BPF_CORE_READ(sc, nr_to_reclaim);
	c->priority = (__u8)BPF_CORE_READ(sc, priority);
	c->key.cgroup = cgroup_id(cgroup_of_memcg(target));
	if (!c->wanted)
		/* Only lists that somebody made himself are shrunk without an aim. */
		c->key.who = PAGEOUT;
	else if (proactive)
		c->key.who = PROACTIVE;
	else if (target)
		c->key.who = MEMCG;
	else if (is_kswapd(task))
		c->key.who = KSWAPD;
	else
		c->key.who = is_khugepaged(task) ? KHUGEPAGED : DIRECT;
}

/* isolate_lru_folios() is done: what it looked at counts as scanned, whatever it took. */
static __always_inline int scan_done(struct lruvec *lruvec, __u64 scanned, struct scan_control *sc,
				     __u64 taken)
{
	struct pr_note *note;
	struct call c = {};

	if (!scanned || !wanted_here())
		return 0;
	if (taken) {
		note = note_made();
		if (note)
			note->scanned += scanned;
		return 0;
	}
	read_control(&c, sc);
	c.key.nid = BPF_CORE_READ(lruvec, pgdat, node_id);
	c.scanned = scanned;
	account(&c);
	return 0;
}

static __always_inline struct pr_note *shrink_begins(struct scan_control *sc)
{
	struct pr_note *note;

	if (!wanted_here())
		return NULL;
	note = note_made();
	if (note) {
		note->before = BPF_CORE_READ(sc, nr_scanned);
		note->shrinking = 1;
	}
	return note;
}

static __always_inline int shrink_done(struct pglist_data *pgdat, struct scan_control *sc,
				       struct reclaim_stat *stat, __u32 reclaimed)
{
	struct pr_note *note;
	struct call c = {};

	if (!wanted_here())
		return 0;
	note = note_here();
	if (!note || !note->shrinking)
		return 0; /* it began before the watcher came */
	read_control(&c, sc);
	c.scanned = note->scanned;
	/*
	 * Lists by generation count what they hand over as scanned, once: what
	 * evict_folios() hands over again is not fresh. Where no event said how much
	 * that is, it is what the call looked at, which leaves out locked folios. So it
	 * is for lists that come from elsewhere, which the kernel does not count.
	 */
	if (!c.scanned && (c.key.who == PAGEOUT || note->fresh || !sees_evict))
		c.scanned = BPF_CORE_READ(sc, nr_scanned) - note->before;
	note_drop();
	c.calls = 1;
	c.key.nid = BPF_CORE_READ(pgdat, node_id);
	c.reclaimed = reclaimed;
	c.dirty = BPF_CORE_READ(stat, nr_dirty);
	c.unqueued = BPF_CORE_READ(stat, nr_unqueued_dirty);
	c.congested = BPF_CORE_READ(stat, nr_congested);
	c.writeback = BPF_CORE_READ(stat, nr_writeback);
	c.immediate = BPF_CORE_READ(stat, nr_immediate);
	account(&c);
	return 0;
}

static __always_inline int evict_begins(void)
{
	struct pr_note *note;

	if (!wanted_here())
		return 0;
	note = note_made();
	if (note)
		note->fresh = 1;
	return 0;
}

/*
 * The function says through a pointer to a number what it looked at, which programs
 * may not read among their arguments in 6.1; its event says the same.
 */
SEC("tp/vmscan/mm_vmscan_lru_isolate")
int on_scan(struct trace_event_raw_mm_vmscan_lru_isolate *ctx)
{
	struct pr_note *note;

	if (IS_ACTIVE(ctx->lru) || !ctx->nr_scanned || !wanted_here())
		return 0;
	note = note_made();
	if (!note)
		return 0;
	/* By generation what is taken counts as scanned. Silent there before 6.7. */
	if (note->fresh)
		note->scanned = ctx->nr_taken;
	else
		note->looked = ctx->nr_scanned;
	return 0;
}

static __always_inline int scan_ends(struct lruvec *lruvec, struct scan_control *sc, __u64 taken)
{
	struct pr_note *note = note_here();
	__u64 scanned;

	if (!note || !note->looked)
		return 0;
	scanned = note->looked;
	note->looked = 0;
	if (!taken)
		note_drop();
	return scan_done(lruvec, scanned, sc, taken);
}

SEC("fexit/isolate_lru_folios")
int BPF_PROG(on_scan_folios, unsigned long nr_to_scan, struct lruvec *lruvec, struct list_head *dst,
	     unsigned long *nr_scanned, struct scan_control *sc, enum lru_list lru,
	     unsigned long taken)
{
	return scan_ends(lruvec, sc, taken);
}

SEC("fexit/isolate_lru_pages")
int BPF_PROG(on_scan_pages, unsigned long nr_to_scan, struct lruvec *lruvec, struct list_head *dst,
	     unsigned long *nr_scanned, struct scan_control *sc, enum lru_list lru,
	     unsigned long taken)
{
	return scan_ends(lruvec, sc, taken);
}

SEC("fentry/shrink_folio_list")
int BPF_PROG(on_folios_begin, struct list_head *list, struct pglist_data *pgdat,
	     struct scan_control *sc)
{
	shrink_begins(sc);
	return 0;
}

/* The result follows the last argument, of which there are five or six. */
SEC("fexit/shrink_folio_list")
int BPF_PROG(on_five_done, struct list_head *list, struct pglist_data *pgdat,
	     struct scan_control *sc, struct reclaim_stat *stat, bool ignore_references,
	     unsigned int reclaimed)
{
	return shrink_done(pgdat, sc, stat, reclaimed);
}

SEC("fexit/shrink_folio_list")
int BPF_PROG(on_six_done, struct list_head *list, struct pglist_data *pgdat,
	     struct scan_control *sc, struct reclaim_stat *stat, bool ignore_references,
	     struct mem_cgroup *memcg, unsigned int reclaimed)
{
	return shrink_done(pgdat, sc, stat, reclaimed);
}

SEC("fentry/shrink_page_list")
int BPF_PROG(on_pages_begin, struct list_head *list, struct pglist_data *pgdat,
	     struct scan_control *sc)
{
	shrink_begins(sc);
	return 0;
}

SEC("fexit/shrink_page_list")
int BPF_PROG(on_pages_done, struct list_head *list, struct pglist_data *pgdat,
	     struct scan_control *sc, struct reclaim_stat *stat, bool ignore_references,
	     unsigned int reclaimed)
{
	return shrink_done(pgdat, sc, stat, reclaimed);
}

SEC("fentry/evict_folios")
int BPF_PROG(on_evict_begin)
{
	return evict_begins();
}

SEC("fexit/evict_folios")
int BPF_PROG(on_evict_done)
{
	note_drop();
	return 0;
}

/* The same with kprobes, which have to keep the arguments until the return. */
static __always_inline int keep_scan(struct lruvec *lruvec, unsigned long *nr_scanned,
				     struct scan_control *sc, __u32 lru)
{
	struct pr_note *note;

	if (IS_ACTIVE(lru) || !wanted_here())
		return 0;
	note = note_made();
	if (!note)
		return 0;
	/* The kernel follows a limited number of returns at a time; this one it did not. */
	if (note->scanning)
		count_lost();
	note->lruvec = (__u64)lruvec;
	note->nr_scanned = (__u64)nr_scanned;
	note->sc = (__u64)sc;
	note->scanning = 1;
	return 0;
}

static __always_inline int kept_scan(__u64 taken)
{
	struct pr_note *note = note_here();
	struct lruvec *lruvec;
	struct scan_control *sc;
	__u64 scanned = 0;

	if (!note || !note->scanning)
		return 0;
	lruvec = (void *)note->lruvec;
	sc = (void *)note->sc;
	bpf_probe_read_kernel(&scanned, sizeof(unsigned long), (void *)note->nr_scanned);
	note->scanning = 0;
	if (!taken)
		note_drop();
	return scan_done(lruvec, scanned, sc, taken);
}

static __always_inline int keep_shrink(struct pglist_data *pgdat, struct scan_control *sc,
				       struct reclaim_stat *stat)
{
	struct pr_note *note = note_here();

	if (note && note->shrinking) /* as above */
		count_lost();
	note = shrink_begins(sc);
	if (!note)
		return 0;
	note->pgdat = (__u64)pgdat;
	note->sc = (__u64)sc;
	note->stat = (__u64)stat;
	return 0;
}

static __always_inline int kept_shrink(__u32 reclaimed)
{
	struct pr_note *note = note_here();

	if (!note || !note->shrinking)
		return 0;
	return shrink_done((void *)note->pgdat, (void *)note->sc, (void *)note->stat, reclaimed);
}

SEC("kprobe/isolate_lru_folios")
int BPF_KPROBE(k_scan_folios, unsigned long nr_to_scan, struct lruvec *lruvec, void *dst,
	       unsigned long *nr_scanned, struct scan_control *sc)
{
	return keep_scan(lruvec, nr_scanned, sc, PT_REGS_PARM6(ctx));
}

SEC("kretprobe/isolate_lru_folios")
int BPF_KRETPROBE(kr_scan_folios, unsigned long taken)
{
	return kept_scan(taken);
}

SEC("kprobe/isolate_lru_pages")
int BPF_KPROBE(k_scan_pages, unsigned long nr_to_scan, struct lruvec *lruvec, void *dst,
	       unsigned long *nr_scanned, struct scan_control *sc)
{
	return keep_scan(lruvec, nr_scanned, sc, PT_REGS_PARM6(ctx));
}

SEC("kretprobe/isolate_lru_pages")
int BPF_KRETPROBE(kr_scan_pages, unsigned long taken)
{
	return kept_scan(taken);
}

SEC("kprobe/shrink_folio_list")
int BPF_KPROBE(k_folios, void *list, struct pglist_data *pgdat, struct scan_control *sc,
	       struct reclaim_stat *stat)
{
	return keep_shrink(pgdat, sc, stat);
}

SEC("kretprobe/shrink_folio_list")
int BPF_KRETPROBE(kr_folios, long reclaimed)
{
	return kept_shrink(reclaimed);
}

SEC("kprobe/shrink_page_list")
int BPF_KPROBE(k_pages, void *list, struct pglist_data *pgdat, struct scan_control *sc,
	       struct reclaim_stat *stat)
{
	return keep_shrink(pgdat, sc, stat);
}

SEC("kretprobe/shrink_page_list")
int BPF_KRETPROBE(kr_pages, long reclaimed)
{
	return kept_shrink(reclaimed);
}

SEC("kprobe/evict_folios")
int BPF_KPROBE(k_evict)
{
	return evict_begins();
}

SEC("kretprobe/evict_folios")
int BPF_KRETPROBE(kr_evict)
{
	note_drop();
	return 0;
}

/*
 * Without functions. A scan says neither who nor where: the begin of the reclaim
 * said the one, the shrink that follows says the other.
 */
static __always_inline __u32 who_here(const struct pr_note *note)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (note && note->who)
		return note->who;
	return is_kswapd(task) ? KSWAPD : OTHER;
}

/* A scan that took nothing, which no shrink follows. */
static __always_inline void flush(struct pr_note *note)
{
	struct call c = {};

	if (!note->scanned)
		return;
	c.key.who = who_here(note);
	c.key.nid = note->has_nid ? note->nid : only_node;
	c.scanned = note->scanned;
	c.priority = PRIORITIES - 1; /* not known */
	note->scanned = 0;
	account(&c);
}

static __always_inline int reclaim_begins(__u32 who)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct pr_note *note;

	if (!wanted_here())
		return 0;
	note = note_made();
	if (!note)
		return 0;
	flush(note);
	note->outer = note->who;
	note->who = who == DIRECT && is_khugepaged(task) ? KHUGEPAGED : who;
	note->has_nid = 0;
	return 0;
}

static __always_inline int reclaim_done(void)
{
	struct pr_note *note = note_here();

	if (!note)
		return 0;
	flush(note);
	note->who = note->outer;
	note->outer = 0;
	if (!note->who)
		note_drop();
	return 0;
}

SEC("tp/vmscan/mm_vmscan_direct_reclaim_begin")
int tp_direct(void *ctx)
{
	return reclaim_begins(DIRECT);
}

SEC("tp/vmscan/mm_vmscan_direct_reclaim_end")
int tp_direct_end(void *ctx)
{
	return reclaim_done();
}

SEC("tp/vmscan/mm_vmscan_memcg_reclaim_begin")
int tp_memcg(void *ctx)
{
	return reclaim_begins(MEMCG);
}

SEC("tp/vmscan/mm_vmscan_memcg_reclaim_end")
int tp_memcg_end(void *ctx)
{
	return reclaim_done();
}

SEC("tp/vmscan/mm_vmscan_memcg_softlimit_reclaim_begin")
int tp_soft(void *ctx)
{
	return reclaim_begins(MEMCG);
}

SEC("tp/vmscan/mm_vmscan_memcg_softlimit_reclaim_end")
int tp_soft_end(void *ctx)
{
	return reclaim_done();
}

SEC("tp/vmscan/mm_vmscan_node_reclaim_begin")
int tp_node(void *ctx)
{
	return reclaim_begins(DIRECT);
}

SEC("tp/vmscan/mm_vmscan_node_reclaim_end")
int tp_node_end(void *ctx)
{
	return reclaim_done();
}

SEC("tp/vmscan/mm_vmscan_lru_isolate")
int tp_isolate(struct trace_event_raw_mm_vmscan_lru_isolate *ctx)
{
	/* From memory: the verifier wants the context at offsets that are constant. */
	volatile __u64 looked = ctx->nr_scanned, taken = ctx->nr_taken;
	__u64 scanned = by_generation ? taken : looked;
	struct pr_note *note;

	if (IS_ACTIVE(ctx->lru) || !scanned || !wanted_here())
		return 0;
	note = note_made();
	if (!note)
		return 0;
	note->scanned += scanned;
	if (!taken)
		flush(note);
	return 0;
}

/* The figures that both events of shrunk lists have. */
#define READ_CALL(c, ctx)                                                                          \
	({                                                                                         \
		(c)->calls = 1;                                                                    \
		(c)->key.nid = (ctx)->nid;                                                         \
		(c)->reclaimed = (ctx)->nr_reclaimed;                                              \
		(c)->dirty = (ctx)->nr_dirty;                                                      \
		(c)->congested = (ctx)->nr_congested;                                              \
		(c)->writeback = (ctx)->nr_writeback;                                              \
		(c)->immediate = (ctx)->nr_immediate;                                              \
	})

SEC("tp/vmscan/mm_vmscan_lru_shrink_inactive")
int tp_inactive(struct trace_event_raw_mm_vmscan_lru_shrink_inactive *ctx)
{
	struct pr_note *note;
	struct call c = {};

	if (!wanted_here())
		return 0;
	READ_CALL(&c, ctx);
	c.priority = ctx->priority;
	note = note_here();
	c.key.who = who_here(note);
	if (note) {
		c.scanned = note->scanned;
		note->scanned = 0;
		note->nid = c.key.nid;
		note->has_nid = 1;
	}
	account(&c);
	return 0;
}

SEC("tp/vmscan/mm_vmscan_reclaim_pages")
int tp_pages(struct trace_event_raw_mm_vmscan_reclaim_pages *ctx)
{
	struct call c = {};

	if (!wanted_here())
		return 0;
	READ_CALL(&c, ctx);
	c.scanned = ctx->nr_scanned;
	c.key.who = PAGEOUT;
	c.priority = PRIORITIES - 1; /* has none */
	account(&c);
	return 0;
}
